"""Bodies as registries send them to webhooks: the fields of their documentation, in its order, with names of ours.

`PUSHES` has for each kind of sender what it sends for a push, and the names that are in it; `OTHERS` what is no push.
"""

from __future__ import annotations

from cvmfs_sync.config import WebhookKind

__all__ = ["OTHERS", "PUSHES", "REGISTRIES", "notification"]

REGISTRIES: dict[WebhookKind, str] = {
    "dockerhub": "docker.io", "github": "ghcr.io", "harbor": "harbor.example.org", "quay": "quay.io",
    "gitlab": "registry.gitlab.example.org", "distribution": "registry.example.org:5000",
}  # fmt: skip

_DOCKERHUB = b"""{
  "callback_url": "https://registry.hub.docker.com/u/org/tool/hook/2141b5bi5i5b02bec211i4eeih0242eg11000a/",
  "push_data": {"pushed_at": 1417566161, "pusher": "someone", "tag": "1.2"},
  "repository": {
    "comment_count": 0, "date_created": 1417494799, "description": "", "dockerfile": "#\\nFROM\\u0009ubuntu\\n",
    "full_description": "Of a tool", "is_official": false, "is_private": true, "is_trusted": true, "name": "tool",
    "namespace": "org", "owner": "org", "repo_name": "org/tool",
    "repo_url": "https://registry.hub.docker.com/u/org/tool/", "star_count": 0, "status": "Active"
  }
}"""

# As sent in November 2025: the times of the version mean nothing.
_GITHUB = b"""{
  "action": "published",
  "registry_package": {
    "id": 9056324, "name": "tool", "namespace": "Org", "description": "", "ecosystem": "CONTAINER",
    "package_type": "CONTAINER", "html_url": "https://github.com/Org/packages/9056324",
    "created_at": "2025-09-19T19:21:05Z", "updated_at": "2025-11-03T13:50:26Z",
    "owner": {"login": "Org", "id": 7076013, "type": "User", "site_admin": false},
    "package_version": {
      "id": 564296960,
      "version": "sha256:89160c587d0c36bf54090497a465445c14980ba48efbcf3b0d03c49b76f3feb8",
      "name": "sha256:89160c587d0c36bf54090497a465445c14980ba48efbcf3b0d03c49b76f3feb8",
      "description": "", "summary": "", "manifest": "", "target_commitish": "main",
      "created_at": "0001-01-01T00:00:00Z", "updated_at": "0001-01-01T00:00:00Z", "metadata": [],
      "container_metadata": {
        "tag": {
          "name": "v1.2", "digest": "sha256:89160c587d0c36bf54090497a465445c14980ba48efbcf3b0d03c49b76f3feb8"
        },
        "labels": {"description": "", "source": "", "revision": "", "image_url": "", "licenses": ""},
        "manifest": {"digest": "sha256:89160c587d0c36bf54090497a465445c14980ba48efbcf3b0d03c49b76f3feb8", "size": 685}
      },
      "package_files": [], "installation_command": "docker pull ghcr.io/org/tool:v1.2",
      "package_url": "ghcr.io/org/tool:v1.2"
    },
    "registry": {"name": "GitHub CONTAINER registry", "type": "CONTAINER", "vendor": "GitHub Inc"}
  },
  "repository": {"id": 1060841726, "name": "tool", "full_name": "Org/tool", "private": false},
  "sender": {"login": "Org", "id": 7076013}
}"""
_GITHUB_PACKAGE = _GITHUB.replace(b'"registry_package"', b'"package"').replace(b'"published"', b'"updated"')

_HARBOR = b"""{
  "type": "PUSH_ARTIFACT", "occur_at": 1680501893, "operator": "robot$ci",
  "event_data": {
    "resources": [
      {
        "digest": "sha256:954b378c375d852eb3c63ab88978f640b4348b01c1b3456a024a81536dafbbf4", "tag": "1.2",
        "resource_url": "localhost/org/tool:1.2"
      }
    ],
    "repository": {
      "date_created": 1680501893, "name": "tool", "namespace": "org", "repo_full_name": "org/tool",
      "repo_type": "private"
    }
  }
}"""
_HARBOR_CLOUDEVENTS = b"""{
  "specversion": "1.0", "id": "66e18103-09c1-41f6-982f-37df223f3eeb",
  "requestid": "51c0b694-0168-4f3c-b0db-282565455d7b", "source": "/projects/2/webhook/policies/15",
  "type": "harbor.artifact.pushed", "datacontenttype": "application/json", "time": "2023-04-03T06:04:46Z",
  "data": {
    "resources": [
      {
        "digest": "sha256:954b378c375d852eb3c63ab88978f640b4348b01c1b3456a024a81536dafbbf4", "tag": "1.2",
        "resource_url": "localhost/org/tool:1.2"
      }
    ],
    "repository": {"name": "tool", "namespace": "org", "repo_full_name": "org/tool", "repo_type": "private"}
  },
  "operator": "robot$ci"
}"""
_HARBOR_BY_DIGEST = _HARBOR.replace(
    b'"tag": "1.2"', b'"tag": "sha256:954b378c375d852eb3c63ab88978f640b4348b01c1b3456a024a81536dafbbf4"'
)

_QUAY = b"""{
  "name": "tool", "repository": "org/tool", "namespace": "org", "docker_url": "quay.io/org/tool",
  "homepage": "https://quay.io/repository/org/tool", "updated_tags": ["latest", "1.2"]
}"""
_QUAY_OLD = _QUAY.replace(b'["latest", "1.2"]', b'{"latest": "b750fe79269d2ec9", "1.2": "a3c593ef05b4332b"}')

_GITLAB_PIPELINE = b"""{
  "object_kind": "pipeline",
  "object_attributes": {
    "id": 31, "iid": 3, "ref": "main", "tag": false, "sha": "bcbb5ec396a2c0f828686f14fac9b80b780504f2",
    "source": "push", "status": "success", "detailed_status": "passed", "stages": ["build", "push"],
    "created_at": "2026-08-12 15:23:28 UTC", "finished_at": "2026-08-12 15:26:29 UTC", "duration": 63
  },
  "user": {"id": 1, "name": "Someone", "username": "someone"},
  "project": {
    "id": 1, "name": "Tool", "web_url": "https://gitlab.example.org/group/Tool", "namespace": "group",
    "path_with_namespace": "group/Tool", "default_branch": "main"
  },
  "builds": []
}"""


def notification(*pushes: tuple[str, str], action: str = "push") -> bytes:
    """What CNCF Distribution sends for pushes, each with an id, a repository and a tag."""
    events = ",".join(
        f"""{{
      "id": "{number}-{repository}-{tag}", "timestamp": "2026-03-09T14:44:26.402973972Z", "action": "{action}",
      "target": {{
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "size": 708,
        "digest": "sha256:fea8895f450959fa676bcc1df0611ea93823a735a01205fd8622846041d0c7cf", "length": 708,
        "repository": "{repository}", "tag": "{tag}",
        "url": "http://evil.example.org/v2/{repository}/manifests/{tag}"
      }},
      "request": {{
        "id": "6df24a34-0959-4923-81ca-14f09767db19", "addr": "192.0.2.11:42961", "host": "evil.example.org",
        "method": "PUT", "useragent": "curl/7.38.0"
      }},
      "actor": {{}}, "source": {{"addr": "registry.example.org:5000", "instanceID": "a53db899-3b4b-4a62"}}
    }}"""
        for number, (repository, tag) in enumerate(pushes)
    )
    return f'{{"events": [{events}]}}'.encode()


_LAYER = notification(("org/tool", "")).replace(b', "tag": ""', b"")
_DISTRIBUTION = notification(("org/tool", "1.2"), ("org/other", "latest"))
_TWO = ("org/tool:1.2", "org/other:latest")

PUSHES: dict[str, tuple[WebhookKind, bytes, tuple[str, ...]]] = {
    "dockerhub": ("dockerhub", _DOCKERHUB, ("org/tool:1.2",)),
    "dockerhub, official": ("dockerhub", _DOCKERHUB.replace(b'"org/tool"', b'"debian"'), ("library/debian:1.2",)),
    "github": ("github", _GITHUB, ("org/tool:v1.2",)),
    "github, package": ("github", _GITHUB_PACKAGE, ("org/tool:v1.2",)),
    "github, no tag": ("github", _GITHUB.replace(b'"v1.2"', b'""'), ("org/tool",)),
    "github, no version": ("github", _GITHUB.replace(b'"package_version"', b'"else"'), ("org/tool",)),
    "harbor": ("harbor", _HARBOR, ("org/tool:1.2",)),
    "harbor, CloudEvents": ("harbor", _HARBOR_CLOUDEVENTS, ("org/tool:1.2",)),
    "quay": ("quay", _QUAY, ("org/tool:latest", "org/tool:1.2")),
    "quay, earlier": ("quay", _QUAY_OLD, ("org/tool:latest", "org/tool:1.2")),
    "gitlab": ("gitlab", _GITLAB_PIPELINE, ("group/tool/**",)),
    "gitlab, its registry": ("gitlab", _DISTRIBUTION, _TWO),
    "distribution": ("distribution", _DISTRIBUTION, _TWO),
}

OTHERS: dict[str, tuple[WebhookKind, bytes]] = {
    "github, ping": ("github", b'{"zen": "Keep it logically awesome.", "hook_id": 1, "hook": {"type": "Repository"}}'),
    "github, npm": ("github", _GITHUB.replace(b'"package_type": "CONTAINER"', b'"package_type": "npm"')),
    "github, deleted": ("github", _GITHUB.replace(b'"published"', b'"deleted"')),
    "harbor, by digest": ("harbor", _HARBOR_BY_DIGEST),
    "harbor, pulled": ("harbor", _HARBOR.replace(b"PUSH_ARTIFACT", b"PULL_ARTIFACT")),
    "quay, a build": ("quay", b'{"build_id": "296ec063", "repository": "org/tool", "docker_tags": ["main"]}'),
    "gitlab, running": ("gitlab", _GITLAB_PIPELINE.replace(b'"success"', b'"running"')),
    "gitlab, a push to git": ("gitlab", b'{"object_kind": "push", "ref": "refs/heads/main"}'),
    "distribution, pulled": ("distribution", notification(("org/tool", "1.2"), action="pull")),
    "distribution, a layer": ("distribution", _LAYER),
    "distribution, nothing": ("distribution", b'{"events": null}'),
}

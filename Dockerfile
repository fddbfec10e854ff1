# cvmfs-sync as a container: for the commands that need no CernVM-FS server (check, plan, unpack, squash, where, import),
# and for publishing with the backend `directory`. `cvmfs_server` lives on the publisher and mounts file systems there:
# with the backend `cvmfs`, install cvmfs-sync on that host. docs/operations.md says why.
#
#   docker build -t cvmfs-sync .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" cvmfs-sync check image-list.yaml
#
# BASE needs Python 3.11 or newer with its module venv, and CA certificates. Packages come from where pip is told to look;
# from requirements/wheels, and nowhere else, if that directory is there:
#
#   pip download --require-hashes --no-deps --only-binary :all: -r requirements/run.txt -d requirements/wheels
ARG BASE=python:3.13-slim
FROM ${BASE} AS build
WORKDIR /src
COPY requirements requirements
RUN python3 -m venv /opt/cvmfs-sync \
    && if [ -d requirements/wheels ]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/src/requirements/wheels; fi \
    && /opt/cvmfs-sync/bin/python -m pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: \
        -r requirements/run.txt
COPY LICENSE README.md pyproject.toml ./
COPY cvmfs_sync cvmfs_sync
RUN /opt/cvmfs-sync/bin/python -m pip install --no-cache-dir --no-index --no-build-isolation --no-deps .

FROM ${BASE}
COPY --from=build /opt/cvmfs-sync /opt/cvmfs-sync
# Owned by the user below, so that named volumes are.
RUN mkdir -p /work /var/lib/cvmfs-sync /var/cache/cvmfs-sync /srv/containers \
    && chown 10001:10001 /work /var/lib/cvmfs-sync /var/cache/cvmfs-sync /srv/containers
ENV PATH=/opt/cvmfs-sync/bin:/usr/local/bin:/usr/bin:/bin HOME=/work PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /work
# Metrics and health; pages and API: where `metrics.listen` and `web.listen` say so, by default to this container only.
EXPOSE 9100 9180
# `run` ends at SIGTERM; what was published stays.
STOPSIGNAL SIGTERM
ENTRYPOINT ["cvmfs-sync"]
CMD ["--help"]

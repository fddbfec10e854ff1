# cvmfs-sync as a container: for the commands that need no CernVM-FS server (check, plan, unpack, squash, where, import),
# and for publishing with the backend `directory`. `cvmfs_server` lives on the publisher and mounts file systems there:
# with the backend `cvmfs`, install cvmfs-sync on that host instead.
#
#   docker build -t cvmfs-sync .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" cvmfs-sync check image-list.yaml
FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements/run.txt requirements/
RUN python -m venv /opt/cvmfs-sync \
    && /opt/cvmfs-sync/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r requirements/run.txt
COPY LICENSE README.md pyproject.toml ./
COPY cvmfs_sync cvmfs_sync
RUN /opt/cvmfs-sync/bin/pip install --no-cache-dir --no-build-isolation --no-deps .

FROM python:3.13-slim
RUN useradd --uid 10001 --create-home cvmfs-sync
COPY --from=build /opt/cvmfs-sync /opt/cvmfs-sync
ENV PATH=/opt/cvmfs-sync/bin:$PATH PYTHONUNBUFFERED=1
USER cvmfs-sync
WORKDIR /work
ENTRYPOINT ["cvmfs-sync"]
CMD ["--help"]

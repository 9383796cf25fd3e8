# The sidecar and the `goldleaves` command, for production: no embedded Postgres, no compiler, no pip, and nobody's root.
#
#   docker build -t goldleaves .
#
# Runs the sidecar. Migrations are another entry point of the same image: --entrypoint goldleaves … bootstrap (or migrate).
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /srv/goldleaves
# The environment is made without pip, and filled from outside.
RUN python -m venv --without-pip /opt/goldleaves
# Dependencies first, so that a change of the source does not install them again: the package is installed as a link to the
# directory that the source is copied to below.
COPY pyproject.toml requirements.lock README.md ./
COPY api/__init__.py api/
RUN python -m pip --python /opt/goldleaves/bin/python --no-cache-dir --disable-pip-version-check \
      install -c requirements.lock -e .

FROM ${PYTHON_IMAGE}
# What the base image brings to install more with: nothing here is installed any more.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/ensurepip \
      /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/site-packages/setuptools* \
      /usr/local/lib/python3*/site-packages/wheel* \
 && mkdir -p /var/lib/goldleaves/spool \
 && chown -R 10001:10001 /var/lib/goldleaves
COPY --from=build /opt/goldleaves /opt/goldleaves
WORKDIR /srv/goldleaves
COPY migrations migrations
COPY policies policies
COPY sql sql
COPY api api
# Compiled here, because whoever runs it may not write.
RUN python -m compileall -q api

# GOLDLEAVES_ENV_FILE is empty: the environment is all that is read. LOGNAME is whom the migrations' log names: a user that is
# only a number has no name to look up.
ENV PATH=/opt/goldleaves/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GOLDLEAVES_ENV_FILE= \
    LOGNAME=goldleaves \
    HOST=0.0.0.0 \
    GATEWAY_PORT=8000 \
    STATE_DIR=/var/lib/goldleaves
USER 10001:10001
VOLUME /var/lib/goldleaves/spool
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-m", "api.healthcheck"]
ENTRYPOINT ["python", "-m", "api.serve"]

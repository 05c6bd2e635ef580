# plainpacs in a container: no root, one volume, a health check by C-ECHO.
#
#   docker build -t plainpacs .
#   docker run --rm -v plainpacs:/archive plainpacs init /archive
#   docker run -d --name plainpacs -v plainpacs:/archive -p 11112:11112 plainpacs
#
# `init` once, on the mounted volume: `serve` alone makes no archive, so that it does not fill the
# container when the volume is not there. A folder of the host's instead (-v /srv/dicom:/archive)
# has to belong to 10001:10001, or run as its owner (--user). With --read-only add --tmpfs /tmp.
# Settings are variables (-e PLAINPACS_AET=DRDCM); the health check heeds the same ones.

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY .src ./.src
COPY archive ./archive
COPY indexer ./indexer
COPY scp ./scp
RUN python -m venv /opt/plainpacs \
    && /opt/plainpacs/bin/pip install --no-cache-dir '.[metrics]'

FROM python:3.12-slim
RUN groupadd --system --gid 10001 plainpacs \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin plainpacs \
    && install -d -o 10001 -g 10001 -m 0750 /archive
COPY --from=build /opt/plainpacs /opt/plainpacs
ENV PATH=/opt/plainpacs/bin:$PATH \
    PLAINPACS_ARCHIVE=/archive \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME ["/archive"]
EXPOSE 11112
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s --retries=3 \
    CMD ["python", "-P", "-m", "plainpacs.scp.daemon.healthcheck"]
ENTRYPOINT ["plainpacs"]
CMD ["serve"]

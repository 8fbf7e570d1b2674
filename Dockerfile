# popproxy with all its extras. helm/popproxy has it in a cluster; alone:
#
#   docker build -t popproxy .
#   docker run --read-only --cap-drop ALL --tmpfs /run/popproxy:uid=10110,mode=0750 -v /etc/popproxy:/etc/popproxy:ro \
#       -p 110:1110 -p 995:1995 popproxy

# ---- first stage: what is there as source only is compiled ----

FROM debian:bookworm-slim AS build

# Debian takes versions off its mirrors when newer ones come, so none can be named.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev libkrb5-dev libldap-dev libsasl2-dev python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY config/man config/man
COPY popproxy popproxy
RUN python3 -m venv /opt/popproxy \
 && /opt/popproxy/bin/pip install --no-cache-dir --disable-pip-version-check '.[kerberos,ldap,oauth,redis,socks,sql,ssh]' \
 && /opt/popproxy/bin/pip uninstall -q -y pip setuptools

# ---- second stage: what runs ----

FROM debian:bookworm-slim

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libgssapi-krb5-2 libldap-2.5-0 libsasl2-2 libsasl2-modules-gssapi-mit python3 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 10110 popproxy \
 && useradd --system --uid 10110 --gid popproxy --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin popproxy \
 && install -d -m 750 -o popproxy -g popproxy /run/popproxy /var/lib/popproxy \
 && install -d /etc/popproxy

COPY --from=build /opt/popproxy /opt/popproxy

ENV PATH=/opt/popproxy/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# Numbers, so that Kubernetes can see that it is not root.
USER 10110:10110
EXPOSE 1110 1995 9110
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["popproxy", "health"]
ENTRYPOINT ["popproxy"]
CMD ["serve"]

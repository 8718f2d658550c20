# The agents and the command line. `docker build -t colobus .`, then see compose.yaml.

FROM node:24-bookworm-slim AS build
# roaring is compiled where no prebuilt binary can be fetched.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make python3 \
    && rm -rf /var/lib/apt/lists/*
# Node's headers for that: the image's own, else those in npm's package of the same version.
WORKDIR /tmp/headers
RUN test -d /usr/local/include/node \
    || { echo '{}' >package.json \
         && npm install --no-audit --no-fund "node@$(node -p process.versions.node)" \
         && cp -r node_modules/node/node_modules/node-*/include /usr/local/; }
ENV npm_config_nodedir=/usr/local
WORKDIR /build
COPY package.json package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY tsconfig.json ./
COPY proto proto
COPY shared shared
COPY primary primary
COPY secondary secondary
COPY cli cli
COPY page page
COPY tools tools
RUN npm run build && npm prune --omit=dev --no-audit --no-fund

FROM node:24-bookworm-slim
LABEL org.opencontainers.image.title="colobus" \
      org.opencontainers.image.description="Checkpointed replication of a virtual machine's disks to a second host" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /opt/colobus
COPY --from=build /build/package.json ./
COPY --from=build /build/node_modules node_modules
COPY --from=build /build/dist dist
COPY LICENSE ./
RUN printf '#!/bin/sh\nexec node --enable-source-maps /opt/colobus/dist/cli/main.js "$@"\n' >/usr/local/bin/colobus \
    && chmod 0755 /usr/local/bin/colobus \
    && install -d -o node -g node -m 0700 /var/lib/colobus /run/colobus
ENV NODE_ENV=production COLOBUS_RUN=/run/colobus
USER node
VOLUME ["/var/lib/colobus", "/run/colobus"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["colobus", "status"]
# Node is process 1 and handles SIGTERM itself.
ENTRYPOINT ["node", "--enable-source-maps", "/opt/colobus/dist/cli/main.js"]
CMD ["--help"]

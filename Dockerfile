# The agents and the command line. `docker build -t colobus .`, then see compose.yaml.

ARG NODE_IMAGE=node:24-bookworm-slim

FROM ${NODE_IMAGE} AS build
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
# What runs is bundled into dist, but for the libraries that are compiled for the machine: a copy of them goes along.
RUN npm ci --no-audit --no-fund \
    && mkdir -p /runtime/node_modules/@koromix \
    && cp -r node_modules/koffi node_modules/roaring /runtime/node_modules/ \
    && cp -r node_modules/@koromix/koffi-linux-* /runtime/node_modules/@koromix/ \
    && cp package.json /runtime/
COPY tsconfig.json ./
COPY tools/build.ts tools/bundle-program.ts tools/
COPY proto proto
COPY shared shared
COPY primary primary
COPY secondary secondary
COPY cli cli
COPY page page
RUN npm run build && cp -r dist /runtime/

FROM ${NODE_IMAGE}
LABEL org.opencontainers.image.title="colobus" \
      org.opencontainers.image.description="Checkpointed replication of a virtual machine's disks to a second host" \
      org.opencontainers.image.licenses="Apache-2.0"
# `colobus certs` runs it.
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssl \
    && rm -rf /var/lib/apt/lists/*
# The image's user owns the places of state, sockets and images: a new volume there takes that over.
RUN printf '#!/bin/sh\nexec node --enable-source-maps /opt/colobus/dist/cli/main.js "$@"\n' >/usr/local/bin/colobus \
    && chmod 0755 /usr/local/bin/colobus \
    && install -d -o node -g node -m 0700 /var/lib/colobus /run/colobus /disks
WORKDIR /opt/colobus
COPY LICENSE ./
COPY --from=build /runtime ./
ENV NODE_ENV=production COLOBUS_RUN=/run/colobus
USER node
STOPSIGNAL SIGTERM
# Healthy is an agent that can do its role's part. That a VM is not protected for lack of the other host is no fault of this one.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 CMD ["colobus", "status", "--check", "--timeout", "8s"]
# Node is process 1 and handles SIGTERM itself.
ENTRYPOINT ["node", "--enable-source-maps", "/opt/colobus/dist/cli/main.js"]
CMD ["--help"]

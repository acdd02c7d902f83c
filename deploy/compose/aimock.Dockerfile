# The upstream of the tests, as a model that costs nothing. The context is tests/upstream.
FROM node:22.20.0-bookworm-slim
WORKDIR /srv
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev
COPY aimock.mjs ./
USER 1000:1000
CMD ["node", "aimock.mjs"]

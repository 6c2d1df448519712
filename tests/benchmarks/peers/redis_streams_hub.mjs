// The peer for append → socket: Redis Streams. XREAD BLOCK on all streams at once over a connection of
// its own, up to 1 000 entries an answer, and a send to every socket for each: no polling, and as few
// answers as there can be. `ioredis` because it is the fastest client we tried here that users have.
// The writer is the generator itself: it pipelines XADD straight into Redis, from C.
//
//     node redis_streams_hub.mjs PORT STREAMS
import Redis from "ioredis";
import { WebSocketServer } from "ws";

const [port, streams] = process.argv.slice(2).map(Number);
const redis = new Redis({ port, host: "127.0.0.1", maxRetriesPerRequest: null });
const server = new WebSocketServer({ port: 0, host: "127.0.0.1", perMessageDeflate: false });
const keys = Array.from({ length: streams }, (_, stream) => `e:${String(stream).padStart(4, "0")}`);
const places = new Map(keys.map((key) => [key, "0"]));

server.on("listening", () => console.log(`listening ${server.address().port}`));
for (;;) {
  const answer = await redis.xread("COUNT", 1000, "BLOCK", 0, "STREAMS", ...keys, ...places.values());
  for (const [key, entries] of answer ?? []) {
    places.set(key, entries.at(-1)[0]);
    for (const [, fields] of entries) for (const socket of server.clients) socket.send(fields[1]);
  }
}

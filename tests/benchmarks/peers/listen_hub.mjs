// The peer for append → socket: Node `ws` on LISTEN. A chunk is one transaction: an insert and a
// pg_notify that carries it (the fastest way to write it by hand); the hub sends what it hears to
// every socket. Chunks arrive on standard input, a line each, so that both writers are outside
// processes fed by the same generator. At most WRITERS transactions are open at once.
import { createInterface } from "node:readline";
import pg from "pg";
import { WebSocketServer } from "ws";

const WRITERS = 8;
const config = { connectionString: process.argv[2] };
const listener = new pg.Client(config);
const pool = new pg.Pool({ ...config, max: WRITERS });
await listener.connect();
await pool.query("create table if not exists peer_chunks (seq bigserial primary key, body text)");
await listener.query("listen peer_chunks");

const server = new WebSocketServer({ port: 0, host: "127.0.0.1", perMessageDeflate: false });
listener.on("notification", ({ payload }) => {
  for (const socket of server.clients) socket.send(payload);
});

async function append(body) {
  await pool.query({
    name: "append",
    text: "with made as (insert into peer_chunks (body) values ($1)) select pg_notify('peer_chunks', $1)",
    values: [body],
  });
}
for (let warm = 0; warm < WRITERS; warm += 1) await append('"warm"');
createInterface({ input: process.stdin }).on("line", append);
console.log(`listening ${server.address().port}`);

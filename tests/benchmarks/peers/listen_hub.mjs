// The peer for append → socket: Node `ws` on LISTEN. A chunk is one transaction: an insert and a
// pg_notify that carries it, which spares the hub a query: the fastest way to write it by hand.
// Chunks arrive on standard input, a line each, so that both writers are outside processes fed by the
// same generator. Each stream has one connection, since its order must hold; eight of them is what a
// pool gives and more than two cores can use. The statement is prepared. What it hears the hub sends
// to every socket.
import { createInterface } from "node:readline";
import pg from "pg";
import { WebSocketServer } from "ws";

const WRITERS = 8;
const config = { connectionString: process.argv[2] };
const connect = async () => {
  const client = new pg.Client(config);
  await client.connect();
  return client;
};
const listener = await connect();
await listener.query("create table if not exists peer_chunks (seq bigserial primary key, body text)");
await listener.query("listen peer_chunks");
const writers = await Promise.all(Array.from({ length: WRITERS }, connect));

const append = {
  name: "append",
  text: "with made as (insert into peer_chunks (body) values ($1)) select pg_notify('peer_chunks', $1)",
};
const last = await Promise.all(writers.map((writer) => writer.query({ ...append, values: ['"warm"'] })));

const server = new WebSocketServer({ port: 0, host: "127.0.0.1", perMessageDeflate: false });
listener.on("notification", ({ payload }) => {
  for (const socket of server.clients) socket.send(payload);
});
// A line ends with #STREAM.NUMBER.STAMP#.
createInterface({ input: process.stdin }).on("line", (line) => {
  const at = Number(line.slice(-35, -31)) % WRITERS;
  const values = [JSON.stringify(line)];
  last[at] = Promise.resolve(last[at]).then(() => writers[at].query({ ...append, values }));
});
server.on("listening", () => console.log(`listening ${server.address().port}`));

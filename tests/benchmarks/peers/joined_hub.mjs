// The peer for fan-out at its best: a Node hub given the same trick as ours. `ws` does the handshake
// and reads; an event's frame is built once, the frames of one turn of the loop are joined, and the
// joined bytes are written to each subscriber's TCP socket, past `ws`. Nobody writes it so; it is
// here to tell the trick from the runtime.
import { WebSocketServer } from "ws";

const server = new WebSocketServer({ port: 0, host: "127.0.0.1", perMessageDeflate: false });
const subscribers = new Set();
let frames = [];

function frame(text) {
  const data = Buffer.from(text);
  const head = data.length < 126 ? Buffer.from([0x81, data.length]) : Buffer.from([0x81, 126, data.length >> 8, data.length & 255]);
  return Buffer.concat([head, data]);
}
function flush() {
  const joined = frames.length === 1 ? frames[0] : Buffer.concat(frames);
  frames = [];
  for (const subscriber of subscribers) subscriber.write(joined);
}
server.on("connection", (socket, request) => {
  if (request.url === "/publish") {
    socket.on("message", (data) => {
      if (frames.push(frame(JSON.stringify(JSON.parse(data)))) === 1) setImmediate(flush);
    });
    return;
  }
  const raw = socket._socket;
  subscribers.add(raw);
  socket.on("close", () => subscribers.delete(raw));
});
server.on("listening", () => console.log(`listening ${server.address().port}`));

// The peer for fan-out: Node `ws` as it is usually written. A publisher socket (path /publish) sends
// events; each is parsed, encoded once, and sent to every other socket. Deflate is off, as in ours.
import { WebSocketServer } from "ws";

const server = new WebSocketServer({ port: 0, host: "127.0.0.1", perMessageDeflate: false });
const subscribers = new Set();
server.on("connection", (socket, request) => {
  if (request.url === "/publish") {
    socket.on("message", (data) => {
      const text = JSON.stringify(JSON.parse(data));
      for (const subscriber of subscribers) subscriber.send(text);
    });
    return;
  }
  subscribers.add(socket);
  socket.on("close", () => subscribers.delete(socket));
});
server.on("listening", () => console.log(`listening ${server.address().port}`));

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

enum { CLOSE = 8, PING = 9, PONG = 10 };

int connect_to(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("no connection to port %d: %s", port, strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

void send_all(int fd, const char *data, size_t length) {
    while (length > 0) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent < 0) fail("a server takes no more: %s", strerror(errno));
        data += sent;
        length -= (size_t)sent;
    }
}

void send_upgrade(int fd, int port, const char *path, const char *subprotocol) {
    char text[1024];
    int length = snprintf(
        text, sizeof text,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: cnVud2lyZS1iZW5jaG1hcg==\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
        path, port, *subprotocol ? "Sec-WebSocket-Protocol: " : "", subprotocol,
        *subprotocol ? "\r\n" : "");
    send_all(fd, text, (size_t)length);
}

/* Read the answer's head, byte by byte: what follows belongs to the first frame. */
void await_upgrade(int fd) {
    char head[4096];
    size_t length = 0;
    while (length < 4 || memcmp(head + length - 4, "\r\n\r\n", 4) != 0) {
        if (length == sizeof head - 1 || recv(fd, head + length, 1, 0) != 1)
            fail("closed during the handshake: %.*s", (int)length, head);
        length++;
    }
    if (memcmp(head, "HTTP/1.1 101", 12) != 0) fail("refused: %.*s", (int)length, head);
}

/* A client's frame, with a mask of zeros: valid, and the data stays as it is. Needs 14 more bytes. */
size_t wrap_frame(char *out, int opcode, const char *data, size_t length) {
    size_t at = 0;
    out[at++] = (char)(0x80 | opcode);
    if (length < 126) {
        out[at++] = (char)(0x80 | length);
    } else if (length < 65536) {
        out[at++] = (char)(0x80 | 126);
        out[at++] = (char)(length >> 8);
        out[at++] = (char)length;
    } else {
        out[at++] = (char)(0x80 | 127);
        for (int shift = 56; shift >= 0; shift -= 8) out[at++] = (char)((uint64_t)length >> shift);
    }
    memset(out + at, 0, 4);
    memcpy(out + at + 4, data, length);
    return at + 4 + length;
}

static void end_frame(struct connection *it) {
    if (it->opcode == PING) {
        char pong[140];
        send_all(it->fd, pong, wrap_frame(pong, PONG, (char *)it->control, (size_t)it->control_length));
    }
    if (it->opcode == CLOSE) {
        int code = it->control_length < 2 ? 1005 : it->control[0] << 8 | it->control[1];
        fail("the server closed socket %d: %d %.*s", it->number, code,
             it->control_length < 2 ? 0 : it->control_length - 2, it->control + 2);
    }
    if (it->opcode < CLOSE) totals.frames++;
    it->head_length = it->control_length = 0;
}

/* Take one byte of a frame's head. */
static void read_head(struct connection *it, uint8_t byte) {
    it->head[it->head_length++] = byte;
    if (it->head_length < 2) return;
    int kind = it->head[1] & 127, wanted = kind == 127 ? 10 : kind == 126 ? 4 : 2;
    if (it->head_length < wanted) return;
    it->opcode = it->head[0] & 15;
    it->payload_left = wanted == 2 ? (uint64_t)kind : 0;
    for (int i = 2; i < wanted; i++) it->payload_left = it->payload_left << 8 | it->head[i];
    if (it->head[0] & 0x70 || it->head[1] & 0x80)
        fail("a frame that is compressed or masked: generator and server disagree");
    it->head_length = -1;
    if (it->payload_left == 0) end_frame(it);
}

/* Move the payloads of data frames to the front; returns how many bytes they are. */
static size_t unframe(struct connection *it, char *data, size_t length) {
    size_t in = 0, out = 0;
    while (in < length) {
        if (it->head_length >= 0) {
            read_head(it, (uint8_t)data[in++]);
            continue;
        }
        size_t part = length - in;
        if (part > it->payload_left) part = (size_t)it->payload_left;
        if (it->opcode < CLOSE) {
            memmove(data + out, data + in, part);
            out += part;
        } else if ((size_t)it->control_length + part <= sizeof it->control) {
            memcpy(it->control + it->control_length, data + in, part);
            it->control_length += (int)part;
        }
        in += part;
        it->payload_left -= part;
        if (it->payload_left == 0) end_frame(it);
    }
    return out;
}

/* Read once what a subscriber's socket has, and check it. */
void receive(struct connection *it) {
    static char buffer[CARRY + READ_SIZE];
    memcpy(buffer, it->carry, (size_t)it->carry_length);
    char *data = buffer + it->carry_length;
    ssize_t length = recv(it->fd, data, READ_SIZE, MSG_DONTWAIT);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (length <= 0) fail("the server closed socket %d", it->number);
    totals.bytes += length;
    int64_t now = now_ns();
    size_t text = settings.websocket ? unframe(it, data, (size_t)length) : (size_t)length;
    scan(it, buffer, (size_t)it->carry_length + text, now);
}

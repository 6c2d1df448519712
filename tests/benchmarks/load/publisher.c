#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "load.h"

/* Where events go in: `fd:N` an inherited pipe, `ws:PATH` a websocket of the server under test,
 * `tcp:PORT` a connection in a protocol whose requests are the prefix, the event, the suffix. */
static int fd = -1, epoll;
static bool framed, answered, waits;
static char *out;
static size_t out_length, out_sent;
enum { OUT_SIZE = 1 << 20, ONE_EVENT = 8192 };

static void watch(int operation) {
    struct epoll_event event = {.events = (answered ? EPOLLIN : 0) | (waits ? EPOLLOUT : 0)};
    event.data.ptr = NULL; /* subscribers have theirs */
    if (epoll_ctl(epoll, operation, fd, &event) < 0) fail("the publisher: %s", strerror(errno));
}

void publisher_open(int in_epoll) {
    const char *to = settings.publish;
    epoll = in_epoll;
    out = malloc(OUT_SIZE);
    if (strncmp(to, "fd:", 3) == 0) {
        fd = atoi(to + 3);
    } else if (strncmp(to, "ws:", 3) == 0) {
        fd = connect_to(settings.port);
        framed = answered = true;
        send_upgrade(fd, settings.port, to + 3, settings.subprotocol);
        await_upgrade(fd);
    } else if (strncmp(to, "tcp:", 4) == 0) {
        fd = connect_to(atoi(to + 4));
        answered = true;
        send_all(fd, settings.publish_hello, strlen(settings.publish_hello));
    } else {
        fail("unknown publisher %s", to);
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    watch(EPOLL_CTL_ADD);
}

/* Whether more may be published: what could not be written yet goes first. */
bool publisher_free(void) { return !waits && OUT_SIZE - out_length > ONE_EVENT; }

void publisher_flush(void) {
    while (out_sent < out_length) {
        ssize_t sent = write(fd, out + out_sent, out_length - out_sent);
        if (sent < 0 && errno != EAGAIN) fail("the publisher takes no more: %s", strerror(errno));
        if (sent < 0) break;
        out_sent += (size_t)sent;
    }
    bool rest = out_sent < out_length;
    if (!rest) out_length = out_sent = 0;
    if (rest != waits) {
        waits = rest;
        watch(EPOLL_CTL_MOD);
    }
}

/* The socket of the publisher is ready: drop what it answers, write what waits. */
void publisher_turn(void) {
    static char answers[READ_SIZE];
    if (answered && read(fd, answers, sizeof answers) == 0) fail("the publisher's socket was closed");
    publisher_flush();
}

/* Copy, with {s} replaced by the number of the stream. */
static size_t fill(char *to, const char *from, int stream) {
    char *start = to;
    while (*from) {
        if (strncmp(from, "{s}", 3) == 0) {
            to += sprintf(to, "%04d", stream);
            from += 3;
        } else {
            *to++ = *from++;
        }
    }
    return (size_t)(to - start);
}

/* Add event `number`, counted over all streams, which take turns. `publisher_flush` sends it. */
void publish(int64_t number) {
    char body[ONE_EVENT / 2];
    int stream = (int)(number % settings.streams);
    size_t at = fill(body, settings.prefix, stream);
    size_t padding = (size_t)(settings.size - EVENT_LENGTH);
    memset(body + at, 'x', padding);
    at += padding;
    at += (size_t)sprintf(body + at, EVENT_FORMAT, stream,
                          (long long)(number / settings.streams + settings.first),
                          (long long)now_ns());
    at += fill(body + at, settings.suffix, stream);
    if (framed) {
        out_length += wrap_frame(out + out_length, 1, body, at);
    } else {
        memcpy(out + out_length, body, at);
        out_length += at;
    }
}

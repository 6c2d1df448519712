/* The load generator: opens sockets, publishes numbered and stamped events, and checks every event
 * on every socket. One thread, one epoll. main.c is the order of things; start reading there. */
#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An event, wherever it stands in a server's bytes: # stream . number . CLOCK_MONOTONIC ns # */
#define EVENT_FORMAT "#%04d.%010lld.%018lld#"
#define EVENT_LENGTH 36
#define MAX_STREAMS 1000
/* What a read may leave unfinished: an event, a "seq" with its number, the text that says ready. */
#define CARRY 64
#define READ_SIZE (256 * 1024)

/* Settings, from the command line; Python's generator.py names each. */
struct settings {
    int port, sockets, at_once, streams, size, window, events, warm, expect, first, linger_ms;
    double rate, seconds;
    bool websocket, check_seq, hold;
    const char *path, *subprotocol, *ready, *publish, *publish_hello, *prefix, *suffix;
    const char *hellos[8];
    int hello_count, servers[16], server_count;
};

/* One subscriber. */
struct connection {
    int fd, number;
    bool ready;
    /* The frame being read: its head as far as it came, and how much of its payload is to come. */
    uint8_t head[10];
    int head_length, opcode;
    uint64_t payload_left;
    uint8_t control[125];
    int control_length;
    char carry[CARRY];
    int carry_length;
    /* The number the next event of each stream must have; the last "seq" if no event followed yet. */
    int64_t *next;
    int64_t announced;
    int stream;
};

/* What all subscribers received. Anything but 0 in `missing`, `again`, `wrong_seq` is a fault. */
struct totals {
    int64_t events, frames, bytes, missing, again, wrong_seq;
};

/* connection.c */
int connect_to(int port);
void send_upgrade(int fd, int port, const char *path, const char *subprotocol);
void await_upgrade(int fd);
void send_all(int fd, const char *data, size_t length);
size_t wrap_frame(char *out, int opcode, const char *data, size_t length);
void receive(struct connection *it);

/* events.c */
void scan(struct connection *it, char *text, size_t length, int64_t now);

/* latencies.c: milliseconds, from a histogram that is exact to 0.2 % */
void latencies_clear(void);
void latencies_add(int64_t nanoseconds);
double latencies_share(double share);

/* publisher.c */
void publisher_open(int epoll);
bool publisher_free(void);
void publish(int64_t number);
void publisher_flush(void);
void publisher_turn(void);

/* main.c */
extern struct settings settings;
extern struct totals totals;
int64_t now_ns(void);
void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

#endif

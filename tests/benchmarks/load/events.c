#define _GNU_SOURCE
#include <string.h>

#include "load.h"

#define SEQ "\"seq\":"
#define SEQ_LENGTH 6

static int64_t digits(const char *text, int length) {
    int64_t value = 0;
    for (int i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9') return -1;
        value = value * 10 + text[i] - '0';
    }
    return value;
}

/* A message says the seq of its first chunk: it must be the one that the stream goes on with, which
 * is known once that chunk is read. So also the count of chunks of the message before was right. */
static void announce(struct connection *it, int64_t seq) {
    if (it->announced >= 0) totals.wrong_seq++;
    it->announced = seq;
}

static void take(struct connection *it, int stream, int64_t number, int64_t stamp, int64_t now) {
    if (settings.check_seq) {
        /* Another stream's chunk without a seq of its own would be in the wrong message. */
        if (it->announced >= 0 ? it->announced != number : it->stream != stream) totals.wrong_seq++;
        it->announced = -1;
        it->stream = stream;
    }
    totals.events++;
    if (number == it->next[stream]) {
        it->next[stream]++;
    } else if (number > it->next[stream]) {
        totals.missing += number - it->next[stream];
        it->next[stream] = number + 1;
    } else {
        totals.again++;
    }
    latencies_add(now - stamp);
}

/* Read the seqs in text that holds no event. Returns where the last whole one ends. */
static char *read_seqs(struct connection *it, char *at, char *end) {
    char *seq;
    while ((seq = memmem(at, (size_t)(end - at), SEQ, SEQ_LENGTH)) != NULL) {
        char *digit = seq + SEQ_LENGTH;
        int64_t value = 0;
        while (digit < end && *digit >= '0' && *digit <= '9') value = value * 10 + *digit++ - '0';
        if (digit == end) break;
        announce(it, value);
        at = digit;
    }
    return at;
}

/* Check every event in `text` (the payload of frames, or a raw stream), which begins with what the
 * last call left over; keep what may be unfinished. */
void scan(struct connection *it, char *text, size_t length, int64_t now) {
    char *at = text, *end = text + length, *done = text;
    if (!it->ready && memmem(text, length, settings.ready, strlen(settings.ready))) it->ready = true;
    while ((at = memchr(at, '#', (size_t)(end - at))) != NULL && end - at >= EVENT_LENGTH) {
        int64_t stream = digits(at + 1, 4), number = digits(at + 6, 10), stamp = digits(at + 17, 18);
        if (stream < 0 || stream >= settings.streams || number < 0 || stamp < 0
            || at[EVENT_LENGTH - 1] != '#') {
            at++;
            continue;
        }
        /* Between two events of one message is only padding, too short for a head with a seq. */
        if (settings.check_seq && at - done > settings.size - EVENT_LENGTH + 3)
            read_seqs(it, done, at);
        take(it, (int)stream, number, stamp, now);
        done = at += EVENT_LENGTH;
    }
    if (settings.check_seq) done = read_seqs(it, done, at == NULL ? end : at);
    if (end - done >= CARRY) done = end - (CARRY - 1);
    it->carry_length = (int)(end - done);
    memcpy(it->carry, done, (size_t)it->carry_length);
}

#include <string.h>

#include "load.h"

/* Microseconds in buckets of 1/1024 of their power of two. */
#define STEP_BITS 10
#define STEPS (1 << STEP_BITS)
#define POWERS 24

static uint32_t buckets[POWERS * STEPS];
static int64_t count;

void latencies_clear(void) {
    memset(buckets, 0, sizeof buckets);
    count = 0;
}

void latencies_add(int64_t nanoseconds) {
    uint64_t value = nanoseconds < 0 ? 0 : (uint64_t)nanoseconds / 1000;
    int shift = value < STEPS ? 0 : 64 - STEP_BITS - __builtin_clzll(value);
    uint64_t at = (uint64_t)shift * STEPS + (value >> shift);
    buckets[at < POWERS * STEPS ? at : POWERS * STEPS - 1]++;
    count++;
}

/* The latency in milliseconds that this share (0 to 1) of the events did not exceed. */
double latencies_share(double share) {
    int64_t wanted = (int64_t)(share * (double)count), seen = 0;
    if (wanted >= count) wanted = count - 1;
    for (uint64_t at = 0; at < POWERS * STEPS; at++) {
        seen += buckets[at];
        if (seen > wanted) return (double)((at % STEPS) << (at / STEPS)) / 1000.0;
    }
    return 0;
}

/* load --port 1 …: what each option means stands in ../generator.py, which is who calls this.
 *
 * Opens the sockets and says hello; once each was told it is ready, prints a line "ready" (and with
 * --hold waits until its input ends); publishes the warming events, then the measured ones, either
 * as fast as a window allows or at a rate; prints what came as one line of JSON. */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "load.h"

struct settings settings = {
    .port = 0, .sockets = 1, .at_once = 50, .streams = 1, .size = 200, .window = 0, .events = 0,
    .warm = 0, .expect = 0, .first = 0, .linger_ms = 50, .rate = 0, .seconds = 60,
    .websocket = true, .path = "/", .subprotocol = "", .ready = "", .publish = "",
    .publish_hello = "", .prefix = "", .suffix = "",
};
struct totals totals;

static struct connection *connections;
static int epoll, timer;
static int64_t started, published;

int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "load: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    exit(1);
}

static double cpu_own(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
         + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double cpu_of(int pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (file == NULL) fail("no process %d", pid);
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    unsigned long user = 0, kernel = 0;
    char *after_name = strrchr(text, ')');
    if (after_name == NULL
        || sscanf(after_name + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel) != 2)
        fail("cannot read %s", path);
    return (double)(user + kernel) / (double)sysconf(_SC_CLK_TCK);
}

static double cpu_servers(void) {
    double sum = 0;
    for (int i = 0; i < settings.server_count; i++) sum += cpu_of(settings.servers[i]);
    return sum;
}

/* How long each core has been busy and has been there, in ticks. */
struct core { long long busy, all; };
enum { CORES = 64 };

static int read_cores(struct core *cores) {
    char line[512];
    int count = 0;
    FILE *file = fopen("/proc/stat", "r");
    if (file == NULL) fail("cannot read /proc/stat");
    while (count < CORES && fgets(line, sizeof line, file) != NULL) {
        long long user, nice, kernel, idle, disk, hard, soft, stolen;
        /* The line of all cores together has no number; the others are other subjects. */
        if (strncmp(line, "cpu", 3) != 0 || line[3] == ' ') continue;
        if (sscanf(line, "cpu%*d %lld %lld %lld %lld %lld %lld %lld %lld", &user, &nice, &kernel,
                   &idle, &disk, &hard, &soft, &stolen) != 8)
            fail("cannot read /proc/stat");
        cores[count].busy = user + nice + kernel + hard + soft + stolen;
        cores[count].all = cores[count].busy + idle + disk;
        count++;
    }
    fclose(file);
    return count;
}

/* Wait for what comes next, and take it. Returns false once the time is over. */
static bool turn(int64_t deadline) {
    struct epoll_event events[256];
    int64_t left = deadline - now_ns();
    if (left <= 0) return false;
    int count = epoll_wait(epoll, events, 256, (int)(left / 1000000) + 1);
    for (int i = 0; i < count; i++) {
        void *what = events[i].data.ptr;
        if (what == NULL) publisher_turn();
        else if (what != &timer) receive(what);
        else if (read(timer, &(uint64_t){0}, 8) < 0 && errno != EAGAIN) fail("the timer failed");
    }
    return true;
}

static void watch(int fd, void *what) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll: %s", strerror(errno));
}

/* Say a hello, with {i} replaced by the number of the socket. */
static void say(struct connection *it, const char *hello) {
    char text[16384], frame[16384 + 14];
    size_t at = 0;
    while (*hello) {
        if (at > sizeof text - 32) fail("a hello is too long");
        if (strncmp(hello, "{i}", 3) == 0) {
            at += (size_t)sprintf(text + at, "%d", it->number);
            hello += 3;
        } else {
            text[at++] = *hello++;
        }
    }
    if (settings.websocket) send_all(it->fd, frame, wrap_frame(frame, 1, text, at));
    else send_all(it->fd, text, at);
}

static int by_value(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

/* Open all sockets, so many at once, and wait until each is ready. */
static void open_all(int64_t deadline, double *took) {
    for (int from = 0; from < settings.sockets; from += settings.at_once) {
        int to = from + settings.at_once;
        if (to > settings.sockets) to = settings.sockets;
        int64_t start = now_ns();
        for (int i = from; i < to; i++) {
            struct connection *it = &connections[i];
            it->fd = connect_to(settings.port);
            if (settings.websocket)
                send_upgrade(it->fd, settings.port, settings.path, settings.subprotocol);
        }
        for (int i = from; i < to; i++) {
            struct connection *it = &connections[i];
            if (settings.websocket) await_upgrade(it->fd);
            for (int h = 0; h < settings.hello_count; h++) say(it, settings.hellos[h]);
            watch(it->fd, it);
        }
        for (int left = to - from; left > 0;) {
            left = 0;
            for (int i = from; i < to; i++) {
                if (!connections[i].ready) left++;
                else if (took[i] == 0) took[i] = (double)(now_ns() - start) / 1e6;
            }
            if (left > 0 && !turn(deadline)) fail("%d sockets were never ready", left);
        }
    }
    qsort(took, (size_t)settings.sockets, sizeof *took, by_value);
}

static void hold(void) {
    static struct connection input;
    struct epoll_event events[64];
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &input};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0) fail("no input to wait for");
    for (;;) {
        int count = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &input) {
                epoll_ctl(epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
                return;
            }
            if (events[i].data.ptr == NULL) publisher_turn();
            else receive(events[i].data.ptr);
        }
    }
}

/* Set the timer to when the next event is due. */
static void set_timer(int64_t due) {
    struct itimerspec when = {.it_value = {due / 1000000000, due % 1000000000}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Publish so many events, and wait until so many have come in all. Returns the most by which an
 * event of a rate was published too late, in nanoseconds. */
static int64_t deliver(int64_t events, int64_t target, int64_t deadline) {
    int64_t begin = now_ns(), before = totals.events, sent = 0, late = 0;
    while (totals.events < target) {
        while (sent < events && publisher_free()) {
            if (settings.rate > 0) {
                int64_t due = begin + (int64_t)((double)sent * 1e9 / settings.rate);
                int64_t over = now_ns() - due;
                if (over < 0) {
                    set_timer(due);
                    break;
                }
                if (over > late) late = over;
            } else if (sent - (totals.events - before) / settings.sockets >= settings.window) {
                break;
            }
            publish(published++);
            sent++;
        }
        if (events > 0) publisher_flush();
        if (!turn(deadline)) break;
    }
    return late;
}

static void measure(const double *ready) {
    int64_t deadline = started + (int64_t)(settings.seconds * 1e9);
    if (settings.warm > 0)
        deliver(settings.warm, totals.events + settings.warm * settings.sockets, deadline);
    /* What nobody publishes may have come before the last socket was ready. */
    int64_t before = settings.expect > 0 ? 0 : totals.events;
    int64_t frames = settings.expect > 0 ? 0 : totals.frames;
    int64_t bytes = settings.expect > 0 ? 0 : totals.bytes;
    int64_t target = before + (int64_t)(settings.events + settings.expect) * settings.sockets;
    if (settings.expect == 0) latencies_clear();
    double own = cpu_own(), servers = cpu_servers();
    struct core before_cores[CORES], cores[CORES];
    int core_count = read_cores(before_cores);
    int64_t start = now_ns();
    int64_t late = deliver(settings.events, target, deadline);
    double seconds = (double)(now_ns() - start) / 1e9;
    own = cpu_own() - own;
    servers = cpu_servers() - servers;
    read_cores(cores);
    int64_t received = totals.events - before;
    frames = totals.frames - frames;
    bytes = totals.bytes - bytes;
    /* What comes twice may come after the last. */
    int64_t end = now_ns() + settings.linger_ms * 1000000LL;
    while (turn(end)) continue;
    int64_t all = published + settings.expect, unfinished = 0;
    for (int s = 0; s < settings.streams; s++) {
        int64_t last = settings.first + (all + settings.streams - 1 - s) / settings.streams;
        for (int i = 0; i < settings.sockets; i++)
            if (connections[i].next[s] < last) unfinished += last - connections[i].next[s];
    }
    printf("{\"received\": %lld, \"frames\": %lld, \"missing\": %lld, \"again\": %lld, "
           "\"wrong_seq\": %lld, \"seconds\": %.6f, \"generator_cpu\": %.4f, "
           "\"server_cpu_seconds\": %.4f, \"p50\": %.4f, \"p99\": %.4f, \"max\": %.4f, "
           "\"late\": %.4f, \"ready_p50\": %.3f, \"ready_max\": %.3f, \"bytes\": %lld, \"busy\": [",
           (long long)received, (long long)frames, (long long)(totals.missing + unfinished),
           (long long)totals.again, (long long)totals.wrong_seq, seconds, own / seconds, servers,
           latencies_share(0.5), latencies_share(0.99), latencies_share(1), (double)late / 1e6,
           ready[settings.sockets / 2], ready[settings.sockets - 1], (long long)bytes);
    for (int i = 0; i < core_count; i++) {
        long long all = cores[i].all - before_cores[i].all;
        printf("%s%.3f", i > 0 ? ", " : "",
               all > 0 ? (double)(cores[i].busy - before_cores[i].busy) / (double)all : 0.0);
    }
    printf("]}\n");
}

static void read_options(int count, char **values) {
    static const struct option options[] = {
        {"port", 1, 0, 'p'},          {"sockets", 1, 0, 'n'},  {"at-once", 1, 0, 'a'},
        {"streams", 1, 0, 's'},       {"size", 1, 0, 'z'},     {"window", 1, 0, 'w'},
        {"events", 1, 0, 'e'},        {"warm", 1, 0, 'W'},     {"expect", 1, 0, 'x'},
        {"first", 1, 0, 'f'},         {"linger", 1, 0, 'l'},   {"rate", 1, 0, 'r'},
        {"seconds", 1, 0, 't'},       {"raw", 0, 0, 'R'},      {"check-seq", 0, 0, 'c'},
        {"hold", 0, 0, 'h'},          {"path", 1, 0, 'P'},     {"subprotocol", 1, 0, 'S'},
        {"hello", 1, 0, 'H'},         {"ready", 1, 0, 'y'},    {"publish", 1, 0, 'b'},
        {"publish-hello", 1, 0, 'B'}, {"prefix", 1, 0, '1'},   {"suffix", 1, 0, '2'},
        {"server", 1, 0, 'v'},        {0},
    };
    int option;
    while ((option = getopt_long(count, values, "", options, NULL)) != -1) {
        switch (option) {
        case 'p': settings.port = atoi(optarg); break;
        case 'n': settings.sockets = atoi(optarg); break;
        case 'a': settings.at_once = atoi(optarg); break;
        case 's': settings.streams = atoi(optarg); break;
        case 'z': settings.size = atoi(optarg); break;
        case 'w': settings.window = atoi(optarg); break;
        case 'e': settings.events = atoi(optarg); break;
        case 'W': settings.warm = atoi(optarg); break;
        case 'x': settings.expect = atoi(optarg); break;
        case 'f': settings.first = atoi(optarg); break;
        case 'l': settings.linger_ms = atoi(optarg); break;
        case 'r': settings.rate = atof(optarg); break;
        case 't': settings.seconds = atof(optarg); break;
        case 'R': settings.websocket = false; break;
        case 'c': settings.check_seq = true; break;
        case 'h': settings.hold = true; break;
        case 'P': settings.path = optarg; break;
        case 'S': settings.subprotocol = optarg; break;
        case 'y': settings.ready = optarg; break;
        case 'b': settings.publish = optarg; break;
        case 'B': settings.publish_hello = optarg; break;
        case '1': settings.prefix = optarg; break;
        case '2': settings.suffix = optarg; break;
        case 'H':
            if (settings.hello_count == 8) fail("more than 8 hellos");
            settings.hellos[settings.hello_count++] = optarg;
            break;
        case 'v':
            if (settings.server_count == 16) fail("more than 16 servers");
            settings.servers[settings.server_count++] = atoi(optarg);
            break;
        default: fail("see generator.py for the options");
        }
    }
    if (settings.streams < 1 || settings.streams > MAX_STREAMS || settings.sockets < 1
        || settings.size < EVENT_LENGTH || settings.size > 2048 || settings.at_once < 1
        || strlen(settings.ready) >= CARRY || (settings.events > 0) != (*settings.publish != 0)
        || (settings.events > 0 && settings.rate <= 0 && settings.window < 1))
        fail("these options do not fit together: see generator.py");
}

int main(int count, char **values) {
    read_options(count, values);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    started = now_ns();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(timer, &timer);
    connections = calloc((size_t)settings.sockets, sizeof *connections);
    double *ready = calloc((size_t)settings.sockets, sizeof *ready);
    for (int i = 0; i < settings.sockets; i++) {
        struct connection *it = &connections[i];
        it->number = i;
        it->announced = it->stream = -1;
        it->ready = *settings.ready == 0;
        it->next = calloc((size_t)settings.streams, sizeof *it->next);
        for (int s = 0; s < settings.streams; s++) it->next[s] = settings.first;
    }
    if (settings.events > 0) publisher_open(epoll);
    open_all(started + (int64_t)(settings.seconds * 1e9), ready);
    printf("ready {\"p50\": %.3f, \"max\": %.3f}\n", ready[settings.sockets / 2],
           ready[settings.sockets - 1]);
    fflush(stdout);
    if (settings.hold) hold();
    started = now_ns();
    measure(ready);
    return 0;
}

// build: -O2 -s
// Times one operation for `./scripts/bench wasi`: argv is its name, how often, and a directory that
// holds `data` (whole blocks of 64 KiB) and `many/` (1000 files). Prints nanoseconds in total.
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 65536

static char buffer[BLOCK];
static char data[4096], many[4096];
static int fd;
static long blocks;  // in `data`

static void need(int ok, const char *what) {
    if (ok) return;
    perror(what);
    exit(1);
}

static void write_byte(long i) { need(write(fd, buffer, 1) == 1, "write"); }

// Sequential ones go back to the beginning after the last block.
static void rewound(long i) {
    if (i % blocks == 0) need(lseek(fd, 0, SEEK_SET) == 0, "lseek");
}
static void read_block(long i) {
    rewound(i);
    need(read(fd, buffer, BLOCK) == BLOCK, "read");
}
static void write_block(long i) {
    rewound(i);
    need(write(fd, buffer, BLOCK) == BLOCK, "write");
}
static off_t offset(long i) { return (off_t)BLOCK * (i % blocks); }
static void pread_block(long i) { need(pread(fd, buffer, BLOCK, offset(i)) == BLOCK, "pread"); }
static void pwrite_block(long i) { need(pwrite(fd, buffer, BLOCK, offset(i)) == BLOCK, "pwrite"); }

static void open_close(long i) {
    int opened = open(data, O_RDONLY);
    need(opened >= 0, "open");
    close(opened);
}
static void list(long i) {
    DIR *dir = opendir(many);
    int n = 0;
    need(dir != NULL, "opendir");
    while (readdir(dir)) n++;
    closedir(dir);
    need(n == 1002, "readdir");
}
static void stat_file(long i) {
    struct stat st;
    need(stat(data, &st) == 0, "stat");
}
static void clock_read(long i) {
    struct timespec now;
    need(clock_gettime(CLOCK_MONOTONIC, &now) == 0, "clock_gettime");
}
static void random_16(long i) { need(getentropy(buffer, 16) == 0, "getentropy"); }
static void poll_none(long i) {
    struct pollfd nothing;
    need(poll(&nothing, 0, 0) == 0, "poll");
}

static const struct {
    const char *name;
    void (*call)(long);
} operations[] = {
    {"write_byte", write_byte},   {"read_block", read_block},     {"write_block", write_block},
    {"pread_block", pread_block}, {"pwrite_block", pwrite_block}, {"open_close", open_close},
    {"list", list},               {"stat", stat_file},            {"clock", clock_read},
    {"random", random_16},        {"poll", poll_none},
};

int main(int argc, char **argv) {
    struct timespec start, end;
    need(argc == 4, "usage: wasi_calls OPERATION TIMES DIRECTORY");
    long times = atol(argv[2]);
    snprintf(data, sizeof data, "%s/data", argv[3]);
    snprintf(many, sizeof many, "%s/many", argv[3]);
    fd = open(strcmp(argv[1], "write_byte") ? data : "/dev/null", O_RDWR);
    need(fd >= 0, "open");
    struct stat st;
    need(stat(data, &st) == 0, "stat");
    blocks = st.st_size / BLOCK;
    memset(buffer, 1, sizeof buffer);
    for (unsigned k = 0; k < sizeof operations / sizeof *operations; k++) {
        if (strcmp(operations[k].name, argv[1])) continue;
        void (*call)(long) = operations[k].call;
        for (long i = 0; i < times / 10 + 1; i++) call(i);  // warm up
        clock_gettime(CLOCK_MONOTONIC, &start);
        for (long i = 0; i < times; i++) call(i);
        clock_gettime(CLOCK_MONOTONIC, &end);
        printf("%lld\n", (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec);
        return 0;
    }
    need(0, "no such operation");
}

// Makes any calls of preview 1 with any numbers: each argument of the program is one call, such as
//
//     path_open 3 1 =../etc 0 0x2 0 0 &
//
// and is answered with a line `errno result`, the result being the u32 that `&` then holds.
// An argument of a call is a number; `end`, the size of the memory, or `end-N`; `&`, the address of
// 64 KiB of zeroes; `$`, the descriptor that was opened last; `=TEXT`, the address and the length of
// a text in which %XX is a byte; `#TEXT`, an aligned address alone; or `[ADDRESS:LENGTH,...`, the address
// and the number of iovecs.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define I uint32_t
#define L uint64_t
#define A1 a[0]
#define A2 A1, a[1]
#define A3 A2, a[2]
#define A4 A3, a[3]
#define A5 A4, a[4]
#define A6 A5, a[5]
#define A7 A6, a[6]
#define A9 A7, a[7], a[8]

#define FUNCTIONS(X)                                             \
    X(args_get, A2, I, I)                                        \
    X(args_sizes_get, A2, I, I)                                  \
    X(environ_get, A2, I, I)                                     \
    X(environ_sizes_get, A2, I, I)                               \
    X(clock_res_get, A2, I, I)                                   \
    X(clock_time_get, A3, I, L, I)                               \
    X(fd_advise, A4, I, L, L, I)                                 \
    X(fd_allocate, A3, I, L, L)                                  \
    X(fd_close, A1, I)                                           \
    X(fd_datasync, A1, I)                                        \
    X(fd_fdstat_get, A2, I, I)                                   \
    X(fd_fdstat_set_flags, A2, I, I)                             \
    X(fd_fdstat_set_rights, A3, I, L, L)                         \
    X(fd_filestat_get, A2, I, I)                                 \
    X(fd_filestat_set_size, A2, I, L)                            \
    X(fd_filestat_set_times, A4, I, L, L, I)                     \
    X(fd_pread, A5, I, I, I, L, I)                               \
    X(fd_prestat_get, A2, I, I)                                  \
    X(fd_prestat_dir_name, A3, I, I, I)                          \
    X(fd_pwrite, A5, I, I, I, L, I)                              \
    X(fd_read, A4, I, I, I, I)                                   \
    X(fd_readdir, A5, I, I, I, L, I)                             \
    X(fd_renumber, A2, I, I)                                     \
    X(fd_seek, A4, I, L, I, I)                                   \
    X(fd_sync, A1, I)                                            \
    X(fd_tell, A2, I, I)                                         \
    X(fd_write, A4, I, I, I, I)                                  \
    X(path_create_directory, A3, I, I, I)                        \
    X(path_filestat_get, A5, I, I, I, I, I)                      \
    X(path_filestat_set_times, A7, I, I, I, I, L, L, I)          \
    X(path_link, A7, I, I, I, I, I, I, I)                        \
    X(path_open, A9, I, I, I, I, I, L, L, I, I)                  \
    X(path_readlink, A6, I, I, I, I, I, I)                       \
    X(path_remove_directory, A3, I, I, I)                        \
    X(path_rename, A6, I, I, I, I, I, I)                         \
    X(path_symlink, A5, I, I, I, I, I)                           \
    X(path_unlink_file, A3, I, I, I)                             \
    X(poll_oneoff, A4, I, I, I, I)                               \
    X(random_get, A2, I, I)                                      \
    X(sock_accept, A3, I, I, I)                                  \
    X(sock_recv, A6, I, I, I, I, I, I)                           \
    X(sock_send, A5, I, I, I, I, I)                              \
    X(sock_shutdown, A2, I, I)

#define IMPORT(name, arguments, ...)                                                    \
    __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name))) I w_##name(__VA_ARGS__);
FUNCTIONS(IMPORT)

static uint64_t scratch[8192];
static uint32_t last;

static I call(const char *name, const uint64_t *a) {
#define TRY(known, arguments, ...) \
    if (!strcmp(name, #known)) return w_##known(arguments);
    FUNCTIONS(TRY)
    exit(99);
}

static uint32_t decode(char *text) {
    char *to = text;
    for (char *from = text; *from; to++) {
        if (*from == '%') {
            char digits[3] = {from[1], from[2], 0};
            *to = (char)strtoul(digits, NULL, 16);
            from += 3;
        } else {
            *to = *from++;
        }
    }
    return (uint32_t)(to - text);
}

static uint64_t number(const char *text, char **end) {
    if (*text == '&') {
        *end = (char *)text + 1;
        return (uintptr_t)scratch;
    }
    if (!strncmp(text, "end", 3)) {
        uint64_t size = (uint64_t)__builtin_wasm_memory_size(0) << 16;
        *end = (char *)text + 3;
        return **end == '-' ? size - strtoull(*end + 1, end, 0) : size;
    }
    return strtoull(text, end, 0);
}

static I perform(char *line) {
    uint64_t a[16] = {0};
    int n = 0;
    char *end, *name = strtok(line, " ");
    memset(scratch, 0, sizeof scratch);
    for (char *word; (word = strtok(NULL, " ")); n++) {
        if (*word == '$') {
            a[n] = last;
        } else if (*word == '=') {
            a[n++] = (uintptr_t)(word + 1);
            a[n] = decode(word + 1);
        } else if (*word == '#') {
            uint32_t length = decode(word + 1);
            a[n] = (uintptr_t)memcpy(malloc(length), word + 1, length);
        } else if (*word == '[') {
            uint32_t *iovecs = malloc(strlen(word) * 8), count = 0;
            for (end = word; *end; count++) {
                iovecs[2 * count] = (uint32_t)number(end + 1, &end);
                iovecs[2 * count + 1] = (uint32_t)number(end + 1, &end);
            }
            a[n++] = (uintptr_t)iovecs;
            a[n] = count;
        } else {
            a[n] = number(word, &end);
        }
    }
    I error = call(name, a);
    if (!error && !strcmp(name, "path_open")) last = (uint32_t)scratch[0];
    return error;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        I error = perform(argv[i]);
        printf("%u %u\n", error, (uint32_t)scratch[0]);
    }
}

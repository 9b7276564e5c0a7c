// What takes a program rather than single calls: argv[1] says which deed.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wasi/api.h>

#define PAGE 65536

extern char **environ;

// Everything that this program can name without having been told of it.
static int visible(void) {
    for (int fd = 0; fd < 4096; fd++) {
        __wasi_fdstat_t status;
        __wasi_prestat_t preopen;
        char name[4096] = {0};
        if (__wasi_fd_fdstat_get(fd, &status)) continue;
        if (!__wasi_fd_prestat_get(fd, &preopen) &&
            __wasi_fd_prestat_dir_name(fd, (uint8_t *)name, preopen.u.dir.pr_name_len))
            return 1;
        printf("descriptor %d %s\n", fd, name);
    }
    for (char **variable = environ; *variable; variable++) printf("variable %s\n", *variable);
    DIR *root = opendir("/");
    for (struct dirent *entry; (entry = readdir(root));) printf("entry %s\n", entry->d_name);
    return 0;
}

// Swap a directory and a way out for each other, for ever.
static int swap(void) {
    if (mkdir("/jail/target", 0755) || symlink("../../..", "/jail/out")) return 1;
    int file = open("/jail/target/secret", O_WRONLY | O_CREAT, 0644);
    write(file, "inside", 6);
    puts("swapping");
    fflush(stdout);
    for (;;) {
        if (rename("/jail/target", "/jail/in") || rename("/jail/out", "/jail/target")) return 2;
        if (rename("/jail/target", "/jail/out") || rename("/jail/in", "/jail/target")) return 3;
    }
}

// Open through what another swaps: so many times, and until it was met in both states.
static int through(int rounds) {
    int inside = 0, outside = 0, refused = 0, absent = 0;
    for (; !outside && (rounds > 0 || !inside || !refused); rounds--) {
        char text[16] = {0};
        struct stat status;
        int file = open("/jail/target/secret", O_RDONLY);
        if (file >= 0) {
            read(file, text, sizeof text - 1);
            close(file);
            *(strcmp(text, "inside") ? &outside : &inside) += 1;
        } else {
            *(errno == ENOENT ? &absent : &refused) += 1;
        }
        // Were it outside, its size would be another.
        if (!stat("/jail/target/secret", &status) && status.st_size != 6) outside++;
        if (!mkdir("/jail/target/new", 0755) && rmdir("/jail/target/new")) absent++;
        if (!link("/jail/target/secret", "/jail/link")) {
            if (!stat("/jail/link", &status) && status.st_size != 6) outside++;
            unlink("/jail/link");
        }
    }
    printf("outside %d\n", outside);
    return 0;
}

// Go up from a directory that another moves out of the mount and back, as often as `through`.
static int above(int rounds) {
    int inside = 0, outside = 0, refused = 0;
    for (; !outside && (rounds > 0 || !inside || !refused); rounds--) {
        const char *ways[] = {"/jail/sub/deep/../secret", "/jail/sub/deep/../../sub/secret"};
        for (int way = 0; way < 2; way++) {
            char text[16] = {0};
            int file = open(ways[way], O_RDONLY);
            if (file < 0) {
                refused++;
                continue;
            }
            read(file, text, sizeof text - 1);
            close(file);
            *(strcmp(text, "inside") ? &outside : &inside) += 1;
        }
    }
    printf("outside %d\n", outside);
    return 0;
}

// Open files until there are no more to be had, and keep them.
static int many(void) {
    int count = 0;
    while (open("/jail/inside", O_RDONLY) >= 0) count++;
    printf("%d %d\n", count, errno);
    fflush(stdout);
    for (;;) sleep(60);
}

// Write until nobody takes it any more.
static int fill(void) {
    static char line[4096];
    memset(line, 'x', sizeof line);
    for (;;) write(1, line, sizeof line);
}

// Give up every descriptor, in every way, and go on.
static int give_up(void) {
    __wasi_fdstat_t status;
    if (__wasi_fd_renumber(3, 1) || __wasi_fd_renumber(1, 2) || __wasi_fd_renumber(2, 0)) return 1;
    if (write(1, "x", 1) >= 0 || write(2, "x", 1) >= 0 || write(0, "x", 1) >= 0) return 2;
    for (int fd = 0; fd < 1024; fd++)
        if (__wasi_fd_close(fd) != __WASI_ERRNO_BADF && !__wasi_fd_fdstat_get(fd, &status)) return 3;
    if (open("/jail/inside", O_RDONLY) >= 0) return 4;
    if (__wasi_random_get((uint8_t *)&status, sizeof status)) return 5;
    return 42;
}

static int recurse(volatile int *depth) {
    volatile int here = *depth + 1;
    return recurse(&here) + here;
}

// Take all memory there is, then use the very end of it.
static int grow(void) {
    while (__builtin_wasm_memory_grow(0, 64) != (size_t)-1) continue;
    while (__builtin_wasm_memory_grow(0, 1) != (size_t)-1) continue;
    uint64_t end = (uint64_t)__builtin_wasm_memory_size(0) * PAGE;
    uint32_t last = (uint32_t)(end - 1);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("%d pages\n", (int)(end / PAGE));
    printf("last byte %d\n", __wasi_random_get((uint8_t *)(uintptr_t)last, 1));
    // Under an engine that gives all 4 GiB, the second byte would be at address 2^32.
    printf("and one more %d\n", __wasi_random_get((uint8_t *)(uintptr_t)last, 2));
    printf("all of it %d\n", __wasi_random_get((uint8_t *)(uintptr_t)last, 0xFFFFFFFFu));
    return 0;
}

// Read a directory in small pieces while its files come and go. `stay-N` are there all the time.
static int stream(int total) {
    static char seen[4096];
    uint8_t piece[100];
    char path[64];
    __wasi_dircookie_t cookie = 0;
    int strangers = 0, twice = 0, missed = 0, calls = 0;
    mkdir("/jail/stream", 0755);
    for (int n = 0; n < 2 * total; n++) {
        sprintf(path, "/jail/stream/%s-%d", n % 2 ? "stay" : "go", n);
        close(open(path, O_WRONLY | O_CREAT, 0644));
    }
    int dir = open("/jail/stream", O_RDONLY | O_DIRECTORY);
    for (; calls < 100 * total; calls++) {
        __wasi_size_t used, offset = 0;
        int n = -1;
        if (__wasi_fd_readdir(dir, piece, sizeof piece, cookie, &used)) return 1;
        while (offset + sizeof(__wasi_dirent_t) <= used) {
            __wasi_dirent_t entry;
            memcpy(&entry, piece + offset, sizeof entry);
            offset += sizeof entry + entry.d_namlen;
            if (offset > used) break;
            cookie = entry.d_next;
            snprintf(path, sizeof path, "%.*s", (int)entry.d_namlen,
                     (char *)piece + offset - entry.d_namlen);
            if (sscanf(path, "stay-%d", &n) == 1) twice += seen[n]++ > 0;
            else strangers += strncmp(path, "go-", 3) && strncmp(path, "new-", 4) && *path != '.';
        }
        if (used < sizeof piece) break;
        sprintf(path, "/jail/stream/go-%d", calls * 4 % (2 * total));
        unlink(path);
        sprintf(path, "/jail/stream/new-%d", calls);
        close(open(path, O_WRONLY | O_CREAT, 0644));
    }
    for (int n = 1; n < 2 * total; n += 2) missed += !seen[n];
    printf("strangers %d\nendless %d\ntwice %d\nmissed %d\n", strangers, calls == 100 * total, twice,
           missed);
    return 0;
}

int main(int argc, char **argv) {
    const char *deed = argc > 1 ? argv[1] : "";
    int number = argc > 2 ? atoi(argv[2]) : 0;
    if (!strcmp(deed, "visible")) return visible();
    if (!strcmp(deed, "swap")) return swap();
    if (!strcmp(deed, "through")) return through(number);
    if (!strcmp(deed, "above")) return above(number);
    if (!strcmp(deed, "many")) return many();
    if (!strcmp(deed, "fill")) return fill();
    if (!strcmp(deed, "give-up")) return give_up();
    if (!strcmp(deed, "recurse")) return recurse(&number);
    if (!strcmp(deed, "grow")) return grow();
    if (!strcmp(deed, "stream")) return stream(number);
    return 99;
}

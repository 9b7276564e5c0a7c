// Tries what its arguments say, in turn, and prints a line of outcome for each:
//   read PATH | write PATH | list PATH | env NAME | grow PAGES | preopens
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wasi/api.h>

static const char *failure(void) {
    switch (errno) {
        case ENOENT: return "ENOENT";
        case EACCES: return "EACCES";
        case EPERM: return "EPERM";
        case EROFS: return "EROFS";
        case ENOTCAPABLE: return "ENOTCAPABLE";
        default: return strerror(errno);
    }
}

static void say_read(const char *path) {
    char text[256];
    int fd = open(path, O_RDONLY);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (got >= 0) text[got] = 0;
    puts(got < 0 ? failure() : strtok(text, "\n") ? text : "");
    close(fd);
}

static void say_write(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    puts(fd < 0 || write(fd, "written\n", 8) != 8 ? failure() : "ok");
    close(fd);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }

static void say_list(const char *path) {
    char *names[256];
    int count = 0;
    DIR *directory = opendir(path);
    if (!directory) {
        puts(failure());
        return;
    }
    for (struct dirent *entry; count < 256 && (entry = readdir(directory));)
        if (entry->d_name[0] != '.') names[count++] = strdup(entry->d_name);
    closedir(directory);
    qsort(names, count, sizeof *names, by_name);
    for (int i = 0; i < count; i++) printf("%s%s", i ? " " : "", names[i]);
    puts("");
}

static void say_preopens(void) {
    __wasi_prestat_t prestat;
    for (int fd = 3; __wasi_fd_prestat_get(fd, &prestat) == 0; fd++) {
        char name[256] = "";
        if (prestat.tag == __WASI_PREOPENTYPE_DIR)
            __wasi_fd_prestat_dir_name(fd, (uint8_t *)name, prestat.u.dir.pr_name_len);
        printf("%s%s", fd > 3 ? " " : "", name);
    }
    puts("");
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *what = argv[i], *argument = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(what, "preopens")) {
            say_preopens();
            continue;
        }
        i++;
        if (!strcmp(what, "read")) say_read(argument);
        else if (!strcmp(what, "write")) say_write(argument);
        else if (!strcmp(what, "list")) say_list(argument);
        else if (!strcmp(what, "env")) puts(getenv(argument) ? getenv(argument) : "(unset)");
        else if (!strcmp(what, "grow"))
            puts(__builtin_wasm_memory_grow(0, atol(argument)) == (size_t)-1 ? "refused" : "ok");
        else return 64;
    }
    return 0;
}

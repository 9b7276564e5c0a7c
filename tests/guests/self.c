// Prints what it sees of itself, a line each: as wasm and natively, to compare.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifndef __wasi__
#include <signal.h>
#endif

extern char **environ;

int main(int argc, char **argv) {
#ifndef __wasi__
    signal(SIGXFSZ, SIG_IGN); // WASI has no signals
#endif
    for (int i = 0; i < argc; i++) printf("argument %d: %s\n", i, argv[i]);
    for (char **e = environ; e && *e; e++) {
        int name = strcspn(*e, "=");
        printf("variable %.*s: %s\n", name, *e, *e + name + 1);
    }
    char path[4096];
    printf("working directory: %s\n", getcwd(path, sizeof path) ? path : strerror(errno));
    for (int fd = 0; fd < 3; fd++) printf("%d is a terminal: %d\n", fd, isatty(fd));
    char byte;
    printf("input: %d\n", (int)read(0, &byte, 1));
    ssize_t length = readlink("/proc/self", path, sizeof path);
    printf("/proc/self: %.*s\n", (int)(length < 0 ? 0 : length), path);

    int file = open("made", O_CREAT | O_WRONLY | O_TRUNC, 0666);
    static char data[1 << 16];
    ssize_t first = write(file, data, sizeof data), second = write(file, data, 1);
    printf("largest file: %d, then %s\n", (int)first, second < 0 ? strerror(errno) : "more");

    int opened = 0;
    while (open("made", O_RDONLY) >= 0) opened++;
    printf("open files: %d more, then %s\n", opened, strerror(errno));
    return 0;
}

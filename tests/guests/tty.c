// Says which of its descriptors are terminals, then answers each line of input, until the end;
// `flood N` with N numbered lines.
// `tty size`, which has to be native, tells the terminal's size, too, and whenever that changes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifndef __wasm__
#include <signal.h>
#include <sys/ioctl.h>

static void say_size(int signum) {
    struct winsize size = {0};
    char text[64];
    (void)signum;
    ioctl(0, TIOCGWINSZ, &size);
    snprintf(text, sizeof text, "size %d %d\n", size.ws_col, size.ws_row);
    write(1, text, strlen(text));
}
#endif

int main(int argc, char **argv) {
    char line[8192];
    printf("tty %d %d %d\n", isatty(0), isatty(1), isatty(2));
    fflush(stdout);
#ifndef __wasm__
    struct sigaction action = {.sa_handler = say_size, .sa_flags = SA_RESTART};
    if (argc > 1 && !strcmp(argv[1], "size")) {
        sigaction(SIGWINCH, &action, NULL);
        say_size(0);
    }
#else
    (void)argc, (void)argv;
#endif
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "flood ", 6))
            for (long number = 0; number < atol(line + 6); number++) printf("%ld\n", number);
        else
            printf("got '%s'\n", line);
        fflush(stdout);
    }
    puts("end");
    return 7;
}

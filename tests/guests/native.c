// What only a program of the kernel's can do, as its argument says:
//   memory     touches more and more of it
//   orphan     leaves a child that sleeps, and ends with 5
//   family     has a child of its own, and waits for it
//   term       waits for SIGTERM and ends with 4
//   where      prints its uid, hostname, working directory and the user of its standard output
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifdef __wasm__
int main(void) { return 1; }
#else
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void end(int signum) {
    (void)signum;
    _exit(4);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "memory"))
        for (;;) {
            volatile char *block = malloc(1 << 20);
            for (int page = 0; page < 256; page++) block[page << 12] = 1;
        }
    if (!strcmp(what, "where")) {
        char host[256] = "", cwd[4096] = "";
        struct stat out;
        gethostname(host, sizeof host);
        getcwd(cwd, sizeof cwd);
        fstat(1, &out);
        printf("%d %s %s %d\n", getuid(), host, cwd, out.st_uid);
        return 0;
    }
    if (!strcmp(what, "term")) signal(SIGTERM, end);
    if (!strcmp(what, "orphan") || !strcmp(what, "family")) {
        pid_t child = fork();
        if (child == 0)
            for (;;) pause();
        if (!strcmp(what, "orphan")) return 5;
    }
    puts("waiting");
    fflush(stdout);
    for (;;)
        if (wait(NULL) < 0) pause();
}
#endif

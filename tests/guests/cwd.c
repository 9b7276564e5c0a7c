// Started in /app of a tree that tests/shim/wasi/test_resolution.py describes: prints a line per
// failed check and exits with their number.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int failures;

static void check(int ok, const char *what) {
    if (ok) return;
    printf("FAIL %s: %s\n", what, strerror(errno));
    failures++;
}

static int holds(const char *path, const char *expected) {
    char text[32] = {0};
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    fread(text, 1, sizeof text - 1, file);
    fclose(file);
    return !strcmp(text, expected);
}

static int put(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    if (!file) return 0;
    fputs(text, file);
    return fclose(file) == 0;
}

static int lists(const char *path, const char *name) {
    DIR *dir = opendir(path);
    struct dirent *entry;
    int found = 0;
    if (!dir) return -1;
    while ((entry = readdir(dir))) found += !strcmp(entry->d_name, name);
    closedir(dir);
    return found;
}

int main(void) {
    check(holds("data", "app"), "relative");
    check(holds("./data", "app"), "plainly relative");
    check(holds("sub/inner", "inner"), "relative, below");
    check(holds("/only", "root"), "absolute");
    check(holds("/app/data", "app"), "absolute, below the working directory");
    check(holds("../only", "root"), "up");
    check(holds("sub/../../only", "root"), "down and up");
    check(holds("up", "root"), "a symlink up");
    check(!holds("../../secret", "secret") && !holds("out", "secret"), "out of /");
    check(lists(".", "sub") == 1 && lists(".", "only") == 0, "opendir .");
    check(lists("/tmp", "old") == 1, "opendir absolute");
    check(put("new", "new") && put("/tmp/new", "new") && put("tmp.txt", "new"), "creating");
    check(put("/only", "changed") && holds("/only", "changed"), "overwriting");
    check(mkdir("d", 0755) == 0 && mkdir("d/e", 0755) == 0 && mkdir("/tmp/d", 0755) == 0, "mkdir");
    check(rename("d/e", "/tmp/d/e") == 0 && rename("/tmp/old", "d/old") == 0, "rename");
    check(link("new", "d/linked") == 0 && symlink("data", "pointer") == 0, "link");
    check(holds("pointer", "app"), "through a symlink");
    check(unlink("sub/inner") == 0 && rmdir("sub") == 0, "removing");
    return failures;
}

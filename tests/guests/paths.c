// paths OPERATION ARGUMENT... : does what its arguments say, in turn, and prints a line of outcome
// for each, the same natively and as a module where paths lead the same way.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void say(const char *found) { puts(found ? found : strerror(errno)); }

static const char *done(int result) { return result < 0 ? NULL : "ok"; }

static const char *open_and_read(int at, const char *path) {
    static char text[256];
    int fd = openat(at, path, O_RDONLY);
    if (fd < 0) return NULL;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size < 0) return NULL;
    text[size] = 0;
    text[strcspn(text, "\n")] = 0;
    return text;
}

static const char *open_and_write(const char *path, int flags) {
    int fd = open(path, O_WRONLY | O_CREAT | flags, 0644);
    if (fd < 0) return NULL;
    int written = write(fd, "written\n", 8) == 8;
    close(fd);
    return written ? "ok" : NULL;
}

static const char *kind(int result, const struct stat *st) {
    if (result < 0) return NULL;
    return S_ISLNK(st->st_mode) ? "symlink" : S_ISDIR(st->st_mode) ? "directory"
         : S_ISREG(st->st_mode) ? "file" : "other";
}

static const char *target(const char *path) {
    static char text[256];
    ssize_t size = readlink(path, text, sizeof text - 1);
    if (size < 0) return NULL;
    text[size] = 0;
    return text;
}

static const char *listed(const char *path) {
    DIR *directory = opendir(path);
    int count = 0;
    if (!directory) return NULL;
    while (readdir(directory)) count++;
    closedir(directory);
    return count > 2 ? "entries" : "empty";
}

static const char *below(const char *path, const char *name) {
    int at = open(path, O_RDONLY | O_DIRECTORY);
    const char *found = at < 0 ? NULL : open_and_read(at, name);
    if (at >= 0) close(at);
    return found;
}

int main(int argc, char **argv) {
    struct stat st;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *what = argv[i], *path = argv[i + 1];
        const char *other = i + 2 < argc ? argv[i + 2] : "";
        printf("%s %s: ", what, path);
        fflush(stdout);
        if (!strcmp(what, "read")) say(open_and_read(AT_FDCWD, path));
        else if (!strcmp(what, "write")) say(open_and_write(path, O_TRUNC));
        else if (!strcmp(what, "make")) say(open_and_write(path, O_EXCL));
        else if (!strcmp(what, "nofollow")) say(done(open(path, O_RDONLY | O_NOFOLLOW)));
        else if (!strcmp(what, "stat")) say(kind(stat(path, &st), &st));
        else if (!strcmp(what, "lstat")) say(kind(lstat(path, &st), &st));
        else if (!strcmp(what, "readlink")) say(target(path));
        else if (!strcmp(what, "list")) say(listed(path));
        else if (!strcmp(what, "mkdir")) say(done(mkdir(path, 0755)));
        else if (!strcmp(what, "rmdir")) say(done(rmdir(path)));
        else if (!strcmp(what, "unlink")) say(done(unlink(path)));
        else if (!strcmp(what, "touch")) say(done(utimensat(AT_FDCWD, path, NULL, 0)));
        else if (!strcmp(what, "chdir")) say(done(chdir(path)));
        else {
            i++;
            if (!strcmp(what, "symlink")) say(done(symlink(path, other)));
            else if (!strcmp(what, "link")) say(done(link(path, other)));
            else if (!strcmp(what, "rename")) say(done(rename(path, other)));
            else if (!strcmp(what, "below")) say(below(path, other));
            else return 64;
        }
    }
    return 0;
}

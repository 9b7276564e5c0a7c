// A container's own program: keeps the symlink w of its first argument, a directory, pointing to the
// root of the newest process that its /proc shows. The second leads from there to the root.
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int newest(void) {
    DIR *proc = opendir("/proc");
    int highest = 1;
    if (!proc) exit(3);
    for (struct dirent *entry; (entry = readdir(proc));)
        if (atoi(entry->d_name) > highest) highest = atoi(entry->d_name);
    closedir(proc);
    return highest;
}

int main(int argc, char **argv) {
    if (argc != 3 || chdir(argv[1])) return 64;
    for (int last = 0;;) {
        int pid = newest();
        if (pid == last) continue;
        char target[64];
        snprintf(target, sizeof target, "%s/proc/%d/root", argv[2], last = pid);
        unlink("w.new");
        if (symlink(target, "w.new") || rename("w.new", "w")) return 1;
    }
}

// A container's own program: keeps the symlink /w pointing to the root of the newest process that
// its /proc shows, relative or not as its argument says.
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

int main(void) {
    for (int last = 0;;) {
        int pid = newest();
        if (pid == last) continue;
        char target[64];
        snprintf(target, sizeof target, "proc/%d/root", last = pid);
        unlink("/w.new");
        symlink(target, "/w.new");
        rename("/w.new", "/w");
    }
}

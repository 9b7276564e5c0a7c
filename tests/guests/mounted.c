// mounted PATH... LAST: prints each file but the last, and writes "done" to that one.
#include <stdio.h>

int main(int argc, char **argv) {
    char line[256];
    FILE *file;
    for (int i = 1; i < argc; i++) {
        if (!(file = fopen(argv[i], i < argc - 1 ? "r" : "w"))) {
            perror(argv[i]);
            return i;
        }
        if (i < argc - 1)
            while (fgets(line, sizeof line, file)) fputs(line, stdout);
        else
            fputs("done\n", file);
        if (fclose(file)) return 64;
    }
    return 0;
}

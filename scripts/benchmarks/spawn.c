// What an exec is measured against: the same program started in the guest by posix_spawn, its output read to its end from two
// pipes, and its end awaited. Listens on a vsock port and answers each byte: `e` by itself, any other by the ns that the command
// of that number (`0` is the first argument, a line of words each) took, in eight bytes.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <spawn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

// In ns; less than 0 if it has failed.
static int64_t run(char **argv) {
    int64_t began = now();
    int out[2], err[2], status;
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) return -1;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err[1], 2);
    pid_t pid;
    int failed = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    close(err[1]);
    struct pollfd ends[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
    for (int open = failed ? 0 : 2; open > 0;) {
        char bytes[4096];
        poll(ends, 2, -1);
        for (int i = 0; i < 2; i++)
            if (ends[i].revents && read(ends[i].fd, bytes, sizeof bytes) <= 0) {
                ends[i].fd = -1;
                open--;
            }
    }
    close(out[0]);
    close(err[0]);
    if (failed || waitpid(pid, &status, 0) < 0 || status != 0) return -1;
    return now() - began;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = atoi(argv[1])};
    int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1)) return 1;
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    for (unsigned char byte; read(client, &byte, 1) == 1;) {
        if (byte == 'e') {
            if (write(client, &byte, 1) != 1) return 1;
            continue;
        }
        char *words[32], *line = strdup(argv[2 + (byte - '0') % (argc - 2)]), *word = strtok(line, "\n");
        int count = 0;
        for (; word && count < 31; word = strtok(NULL, "\n")) words[count++] = word;
        words[count] = NULL;
        int64_t took = run(words);
        free(line);
        if (write(client, &took, sizeof took) != sizeof took) return 1;
    }
    return 0;
}

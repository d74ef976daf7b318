/* Sends one HTTP request on a schedule and records each latency from the moment it was due, so
 * that a pause of the server counts against every request that should have been sent meanwhile.
 *
 * usage: schedule PORT RATE SECONDS CONNECTIONS REQUEST_FILE RECORD_FILE
 *
 * The record file gets four 32-bit numbers per request: when it was due, how late this program
 * noticed that, and its latency, all in microseconds, and the answer's status, 0 if none came. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define GRACE 5000000000LL
#define ROOM 65536
#define MOST 4096

typedef struct { uint32_t due, noticed, latency, status; } record;
typedef struct { int fd; long request; int got; char data[ROOM]; } connection;

static int epoll, port, idle[MOST], first, idles;
static connection *links;
static record *records;
static long long start;
static double step;
static long answered;

static void die(const char *what) { perror(what); exit(1); }

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Idle connections wait in line, so that none is idle for so long that the server closes it. */
static int *place(int i) { return &idle[(first + i) % MOST]; }

static void line_up(int number) { *place(idles++) = number; }

static int take(void) {
  int number = *place(0);
  first = (first + 1) % MOST;
  idles--;
  return number;
}

static void leave(int number) {
  int i, kept = 0;
  for (i = 0; i < idles; i++)
    if (*place(i) != number) *place(kept++) = *place(i);
  idles = kept;
}

static long long due(long request) { return start + (long long)(request * step); }

static void attach(int number) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
  int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(fd, F_SETFL, O_NONBLOCK);
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) die("epoll_ctl");
  links[number].fd = fd;
  links[number].request = -1;
  line_up(number);
}

static void finish(connection *link, int status) {
  record *own = &records[link->request];
  own->latency = (now() - due(link->request)) / 1000;
  own->status = status;
  link->request = -1;
  answered++;
}

static void lose(int number) {
  connection *link = &links[number];
  if (link->request >= 0) finish(link, 0);
  else leave(number);
  close(link->fd);
  attach(number);
}

/* The status of a whole answer, 0 while there is more to come. */
static int whole(connection *link) {
  char *end, *length;
  link->data[link->got] = 0;
  if (!(end = strstr(link->data, "\r\n\r\n"))) return 0;
  length = strcasestr(link->data, "content-length:");
  if (!length || length > end) return 0;
  return end + 4 + atol(length + 15) <= link->data + link->got ? atoi(link->data + 9) : 0;
}

static void receive(int number) {
  connection *link = &links[number];
  int status, n = read(link->fd, link->data + link->got, ROOM - 1 - link->got);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0 || link->request < 0) { lose(number); return; }
  link->got += n;
  if (!(status = whole(link))) {
    if (link->got == ROOM - 1) lose(number);
    return;
  }
  finish(link, status);
  line_up(number);
}

static void post(long request, const char *text, int size) {
  int number = take();
  connection *link = &links[number];
  link->request = request;
  link->got = 0;
  if (write(link->fd, text, size) != size) lose(number);
}

static void run(long count, const char *text, int size) {
  struct epoll_event events[256];
  long next = 0, seen = 0;
  long long clock, pause, end = due(count) + GRACE;
  while (answered < count && (clock = now()) < end) {
    int i, n;
    for (; seen < count && due(seen) <= clock; seen++) {
      records[seen].due = (due(seen) - start) / 1000;
      records[seen].noticed = (clock - due(seen)) / 1000;
    }
    for (; next < seen && idles; next++) post(next, text, size);
    pause = (seen < count ? due(seen) : clock + 10000000) - now();
    if (pause < 0) pause = 0;
    if (pause > 10000000) pause = 10000000;
    n = epoll_pwait2(epoll, events, 256, &(struct timespec){0, pause}, NULL);
    for (i = 0; i < n; i++) receive(events[i].data.u32);
  }
}

int main(int argc, char **argv) {
  static char text[1 << 20];
  struct rusage used;
  FILE *file;
  if (argc != 7) { fprintf(stderr, "six arguments, please\n"); return 2; }
  port = atoi(argv[1]);
  step = 1e9 / atof(argv[2]);
  long count = atof(argv[2]) * atof(argv[3]), failed = 0, i;
  int size, connections = atoi(argv[4]);
  if (connections > MOST) { fprintf(stderr, "at most %d connections\n", MOST); return 2; }
  if (!(file = fopen(argv[5], "rb"))) die(argv[5]);
  size = fread(text, 1, sizeof text, file);
  fclose(file);
  epoll = epoll_create1(0);
  prctl(PR_SET_TIMERSLACK, 1000);
  links = calloc(connections, sizeof *links);
  records = calloc(count, sizeof *records);
  if (!links || !records) die("memory");
  for (i = 0; i < connections; i++) attach(i);
  start = now() + 10000000;
  run(count, text, size);
  for (i = 0; i < count; i++) {
    if (!records[i].status) records[i].latency = (now() - due(i)) / 1000;
    failed += records[i].status != 200;
  }
  if (!(file = fopen(argv[6], "wb"))) die(argv[6]);
  fwrite(records, sizeof *records, count, file);
  fclose(file);
  getrusage(RUSAGE_SELF, &used);
  printf("{\"start\": %.9f, \"requests\": %ld, \"failed\": %ld, \"cpu\": %.3f}\n", start / 1e9,
         count, failed, used.ru_utime.tv_sec + used.ru_stime.tv_sec
         + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
  return 0;
}

/*
 * The moves of data that no pair can do without, and nothing else: the bound that the benchmarks hold pairs against.
 *
 *   bare-pair secondary IMAGE HIDDEN        prints its TCP port, and takes one primary
 *   bare-pair primary IMAGE SOCKET PORT     serves IMAGE over NBD on the unix socket, to one client at a time
 *
 * The primary writes what a client sends to its image, and sends it on. The secondary writes that to its own, once HIDDEN has
 * what the cluster held at the last checkpoint. What has arrived together is sent on and answered together. The end of a
 * client is a checkpoint: HIDDEN begins anew, and only then is the next client served.
 *
 * There are no journals, windows, acknowledgements or checks of the peer, and whatever fails ends the process.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
  BUFFER_BYTES = 64 * 1024,
  CLUSTER_BYTES = 4096,
  /* A larger piece of a write is sent from where it has arrived. */
  COPIED_MAX_BYTES = 16 * 1024,
};

#define PACKED __attribute__((packed))

/* What goes from the primary to the secondary: a write of `length` bytes, which follow; or a checkpoint, of none. */
struct PACKED operation {
  uint64_t offset;
  uint32_t length;
};

/* What was read from a socket and not taken yet. */
struct input {
  int fd;
  size_t at, end;
  char bytes[BUFFER_BYTES];
};

/* What goes to a socket together. */
struct output {
  int fd;
  size_t length;
  char bytes[BUFFER_BYTES];
};

static void write_all(int fd, const void *bytes, size_t length) {
  for (const char *next = bytes; length > 0;) {
    ssize_t written = write(fd, next, length);
    if (written <= 0) err(1, "write to a socket");
    next += written;
    length -= (size_t)written;
  }
}

static void flush(struct output *output) {
  write_all(output->fd, output->bytes, output->length);
  output->length = 0;
}

static void put(struct output *output, const void *bytes, size_t length) {
  if (output->length + length > BUFFER_BYTES) flush(output);
  memcpy(output->bytes + output->length, bytes, length);
  output->length += length;
}

/* Waits for more than is left; false where the other side has ended. */
static bool receive(struct input *input) {
  ssize_t length = read(input->fd, input->bytes, BUFFER_BYTES);
  if (length < 0 && errno == ECONNRESET) length = 0;
  if (length < 0) err(1, "read from a socket");
  input->at = 0;
  input->end = (size_t)length;
  return length > 0;
}

/* At most `length` bytes of what has arrived, at least one. */
static size_t take_piece(struct input *input, size_t length, const char **piece) {
  if (input->at == input->end && !receive(input)) errx(1, "the other side ended within a request");
  size_t taken = input->end - input->at < length ? input->end - input->at : length;
  *piece = input->bytes + input->at;
  input->at += taken;
  return taken;
}

/* Takes `length` bytes; false where the other side has ended before the first one. */
static bool take(struct input *input, void *into, size_t length) {
  if (input->at == input->end && !receive(input)) return false;
  for (size_t taken = 0; taken < length;) {
    const char *piece;
    size_t more = take_piece(input, length - taken, &piece);
    memcpy((char *)into + taken, piece, more);
    taken += more;
  }
  return true;
}

static void write_at(int fd, const void *bytes, size_t length, uint64_t offset) {
  if (pwrite(fd, bytes, length, (off_t)offset) != (ssize_t)length) err(1, "write to an image");
}

static void read_at(int fd, void *into, size_t length, uint64_t offset) {
  if (pread(fd, into, length, (off_t)offset) != (ssize_t)length) err(1, "read from an image");
}

static int open_image(const char *path, uint64_t *size) {
  int fd = open(path, O_RDWR);
  struct stat facts;
  if (fd < 0 || fstat(fd, &facts) != 0) err(1, "%s", path);
  *size = (uint64_t)facts.st_size;
  return fd;
}

/* ---- the secondary ---- */

struct replica {
  int image, hidden;
  uint64_t size;
  const char *hidden_path;
  /* One for each cluster: whether HIDDEN has what it held at the checkpoint. */
  bool *saved;
};

static void begin_epoch(struct replica *replica) {
  if (replica->hidden >= 0) close(replica->hidden);
  unlink(replica->hidden_path);
  replica->hidden = open(replica->hidden_path, O_RDWR | O_CREAT | O_EXCL, 0600);
  if (replica->hidden < 0 || ftruncate(replica->hidden, (off_t)replica->size) != 0) err(1, "%s", replica->hidden_path);
  memset(replica->saved, 0, replica->size / CLUSTER_BYTES);
}

/* Saves a run of clusters that are not saved yet. */
static void save_run(struct replica *replica, uint64_t first, uint64_t end) {
  static char original[BUFFER_BYTES];
  for (uint64_t at = first * CLUSTER_BYTES; at < end * CLUSTER_BYTES;) {
    size_t length = end * CLUSTER_BYTES - at < BUFFER_BYTES ? end * CLUSTER_BYTES - at : BUFFER_BYTES;
    read_at(replica->image, original, length, at);
    write_at(replica->hidden, original, length, at);
    at += length;
  }
  memset(replica->saved + first, true, end - first);
}

static void save_originals(struct replica *replica, uint64_t offset, uint64_t length) {
  uint64_t end = (offset + length + CLUSTER_BYTES - 1) / CLUSTER_BYTES;
  for (uint64_t cluster = offset / CLUSTER_BYTES; cluster < end; cluster += 1) {
    uint64_t first = cluster;
    while (cluster < end && !replica->saved[cluster]) cluster += 1;
    if (cluster > first) save_run(replica, first, cluster);
  }
}

static int take_primary(void) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr *)&address, length) != 0 || listen(listener, 1) != 0) err(1, "listen");
  if (getsockname(listener, (struct sockaddr *)&address, &length) != 0) err(1, "getsockname");
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  int primary = accept(listener, NULL, NULL);
  if (primary < 0) err(1, "accept");
  close(listener);
  return primary;
}

static void run_secondary(const char *image_path, const char *hidden_path) {
  static struct input input;
  struct replica replica = {.hidden = -1, .hidden_path = hidden_path};
  replica.image = open_image(image_path, &replica.size);
  replica.saved = calloc(replica.size / CLUSTER_BYTES, 1);
  begin_epoch(&replica);
  input.fd = take_primary();
  struct operation operation;
  while (take(&input, &operation, sizeof operation)) {
    if (operation.length == 0) {
      begin_epoch(&replica);
      write_all(input.fd, "", 1);
      continue;
    }
    save_originals(&replica, operation.offset, operation.length);
    while (operation.length > 0) {
      const char *piece;
      size_t length = take_piece(&input, operation.length, &piece);
      write_at(replica.image, piece, length, operation.offset);
      operation.offset += length;
      operation.length -= (uint32_t)length;
    }
  }
}

/* ---- the primary ---- */

/* https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md */
enum {
  NBD_FLAG_FIXED_NEWSTYLE_NO_ZEROES = 3,
  NBD_FLAGS_OF_EXPORT = 1 /* they are told */ | 4 /* FLUSH */,
  NBD_OPT_ABORT = 2,
  NBD_OPT_GO = 7,
  NBD_REP_ACK = 1,
  NBD_REP_INFO = 3,
  NBD_CMD_READ = 0,
  NBD_CMD_WRITE = 1,
  NBD_CMD_DISC = 2,
  NBD_CMD_FLUSH = 3,
  OPTION_MAX_BYTES = 4096,
};
static const uint32_t NBD_REP_ERR_UNSUP = 0x80000001;

struct PACKED greeting {
  uint64_t magic, option_magic;
  uint16_t flags;
};

struct PACKED option {
  uint64_t magic;
  uint32_t option, length;
};

struct PACKED option_reply {
  uint64_t magic;
  uint32_t option, type, length;
};

struct PACKED export_info {
  uint16_t type;
  uint64_t size;
  uint16_t flags;
};

struct PACKED request {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie, offset;
  uint32_t length;
};

struct PACKED reply {
  uint32_t magic, error;
  uint64_t cookie;
};

struct primary {
  int image, secondary;
  uint64_t size;
  struct input input;
  struct output replies, forwarded;
};

static void reply_option(struct primary *primary, uint32_t option, uint32_t type, uint32_t length) {
  struct option_reply reply = {htobe64(0x3e889045565a9), htobe32(option), htobe32(type), htobe32(length)};
  put(&primary->replies, &reply, sizeof reply);
}

/* False where the client goes without an export. */
static bool shake_hands(struct primary *primary) {
  struct greeting greeting = {
      htobe64(0x4e42444d41474943), htobe64(0x49484156454f5054), htobe16(NBD_FLAG_FIXED_NEWSTYLE_NO_ZEROES)};
  write_all(primary->input.fd, &greeting, sizeof greeting);
  uint32_t client_flags;
  if (!take(&primary->input, &client_flags, sizeof client_flags)) return false;
  for (struct option option; take(&primary->input, &option, sizeof option);) {
    static char data[OPTION_MAX_BYTES];
    uint32_t number = be32toh(option.option), length = be32toh(option.length);
    if (length > sizeof data) errx(1, "an option of %u bytes", length);
    if (length > 0 && !take(&primary->input, data, length)) return false;
    if (number == NBD_OPT_GO) {
      struct export_info info = {0, htobe64(primary->size), htobe16(NBD_FLAGS_OF_EXPORT)};
      reply_option(primary, number, NBD_REP_INFO, sizeof info);
      put(&primary->replies, &info, sizeof info);
    }
    reply_option(primary, number, number == NBD_OPT_GO || number == NBD_OPT_ABORT ? NBD_REP_ACK : NBD_REP_ERR_UNSUP, 0);
    flush(&primary->replies);
    if (number == NBD_OPT_GO) return true;
    if (number == NBD_OPT_ABORT) return false;
  }
  return false;
}

static void answer(struct primary *primary, const struct request *request) {
  struct reply reply = {htobe32(0x67446698), 0, request->cookie};
  put(&primary->replies, &reply, sizeof reply);
}

static void write_through(struct primary *primary, uint64_t offset, uint32_t length) {
  struct operation operation = {offset, length};
  put(&primary->forwarded, &operation, sizeof operation);
  while (length > 0) {
    const char *piece;
    size_t taken = take_piece(&primary->input, length, &piece);
    write_at(primary->image, piece, taken, offset);
    if (taken <= COPIED_MAX_BYTES) {
      put(&primary->forwarded, piece, taken);
    } else {
      flush(&primary->forwarded);
      write_all(primary->secondary, piece, taken);
    }
    offset += taken;
    length -= (uint32_t)taken;
  }
}

static void answer_read(struct primary *primary, const struct request *request, uint64_t offset, uint32_t length) {
  static char content[BUFFER_BYTES];
  answer(primary, request);
  while (length > 0) {
    size_t taken = length < sizeof content ? length : sizeof content;
    read_at(primary->image, content, taken, offset);
    put(&primary->replies, content, taken);
    offset += taken;
    length -= (uint32_t)taken;
  }
}

static void serve_client(struct primary *primary) {
  for (struct request request;;) {
    struct input *input = &primary->input;
    if (input->end - input->at < sizeof request) {
      flush(&primary->forwarded);
      flush(&primary->replies);
    }
    if (!take(input, &request, sizeof request)) return;
    uint64_t offset = be64toh(request.offset);
    uint32_t length = be32toh(request.length);
    if (offset > primary->size || length > primary->size - offset) errx(1, "a request beyond the end");
    switch (be16toh(request.type)) {
      case NBD_CMD_WRITE:
        write_through(primary, offset, length);
        answer(primary, &request);
        break;
      case NBD_CMD_READ:
        answer_read(primary, &request, offset, length);
        break;
      case NBD_CMD_FLUSH:
        answer(primary, &request);
        break;
      case NBD_CMD_DISC:
        return;
      default:
        errx(1, "a request of type %d", be16toh(request.type));
    }
  }
}

/* Returns when the secondary has everything. */
static void take_checkpoint(struct primary *primary) {
  struct operation checkpoint = {0, 0};
  char done;
  put(&primary->forwarded, &checkpoint, sizeof checkpoint);
  flush(&primary->forwarded);
  if (read(primary->secondary, &done, 1) != 1) errx(1, "the secondary has ended");
}

static int connect_to(uint16_t port) {
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int secondary = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  if (connect(secondary, (struct sockaddr *)&address, sizeof address) != 0) err(1, "connect");
  if (setsockopt(secondary, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) err(1, "TCP_NODELAY");
  return secondary;
}

static void run_primary(const char *image_path, const char *socket_path, uint16_t port) {
  static struct primary primary;
  primary.image = open_image(image_path, &primary.size);
  primary.secondary = primary.forwarded.fd = connect_to(port);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(socket_path) >= sizeof address.sun_path) errx(1, "%s is too long for a socket", socket_path);
  strcpy(address.sun_path, socket_path);
  int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 8) != 0) err(1, "listen");
  for (;;) {
    int client = accept(listener, NULL, NULL);
    if (client < 0) err(1, "accept");
    primary.input.fd = primary.replies.fd = client;
    primary.input.at = primary.input.end = primary.replies.length = 0;
    if (shake_hands(&primary)) serve_client(&primary);
    close(client);
    take_checkpoint(&primary);
  }
}

int main(int count, char **words) {
  if (count == 4 && strcmp(words[1], "secondary") == 0) run_secondary(words[2], words[3]);
  else if (count == 5 && strcmp(words[1], "primary") == 0) run_primary(words[2], words[3], (uint16_t)atoi(words[4]));
  else errx(2, "usage: bare-pair secondary IMAGE HIDDEN | bare-pair primary IMAGE SOCKET PORT");
  return 0;
}

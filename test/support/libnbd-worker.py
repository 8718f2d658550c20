"""An NBD client that does what it is told: one JSON request a line on stdin, one JSON answer a line on stdout."""

import base64
import json
import sys

import nbd

client = nbd.NBD()
# What a client must not do is the server's to refuse.
client.set_strict_mode(0)
client.add_meta_context("base:allocation")


def flags_of(request):
    flags = 0
    if request.get("fua"):
        flags |= nbd.CMD_FLAG_FUA
    if request.get("noHole"):
        flags |= nbd.CMD_FLAG_NO_HOLE
    return flags


def extents(request):
    found = []

    def add(context, offset, entries, error):
        found.extend({"length": entries[i], "state": entries[i + 1]} for i in range(0, len(entries), 2))
        return 0

    client.block_status(request["length"], request["offset"], add)
    return found


def answer(request):
    operation = request["operation"]
    if operation == "connect":
        client.connect_uri(request["uri"])
        return {"sizeBytes": client.get_size(), "readOnly": client.is_read_only()}
    if operation == "read":
        return {"data": base64.b64encode(client.pread(request["length"], request["offset"])).decode()}
    if operation == "write":
        pattern = base64.b64decode(request["pattern"])
        client.pwrite(pattern * (request["length"] // len(pattern)), request["offset"], flags_of(request))
    elif operation == "zero":
        client.zero(request["length"], request["offset"], flags_of(request))
    elif operation == "trim":
        client.trim(request["length"], request["offset"], flags_of(request))
    elif operation == "flush":
        client.flush()
    elif operation == "extents":
        return {"extents": extents(request)}
    elif operation == "close":
        client.shutdown()
    return {}


for line in sys.stdin:
    try:
        reply = answer(json.loads(line))
    except nbd.Error as error:
        reply = {"error": error.errno or error.string}
    print(json.dumps(reply), flush=True)

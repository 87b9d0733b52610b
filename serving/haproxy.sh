#!/bin/sh
# Ray starts this file where it would start HAProxy; serving/haproxystart.py says what it does.
# -P: whatever lies in the working directory is not imported.
exec "${KEN_HAPROXY_PYTHON:-python3}" -P -m serving.haproxystart "$@"

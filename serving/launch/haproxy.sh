#!/bin/sh
# Ray starts this file where it would start HAProxy; serving/launch/haproxy_start.py says what it does.
# -P: whatever lies in the working directory is not imported.
exec "${KEN_HAPROXY_PYTHON:-python3}" -P -m serving.launch.haproxy_start "$@"

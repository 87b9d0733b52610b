#!/bin/sh
# Ray starts this file in place of HAProxy. serving/launch/haproxy_start.py explains what it does.
# -P: Python must not import modules from the working directory.
exec "${KEN_HAPROXY_PYTHON:-python3}" -P -m serving.launch.haproxy_start "$@"

#!/bin/sh
# preStop of a Ray worker: tell Ray that this node goes within $1 seconds, so that nothing new is placed on it; then
# leave what runs here that long to finish, and not a second more.
seconds=${1:-90}
titles() { cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n'; }
busy() { titles | grep '^ray::' | grep -qvE '^ray::(IDLE|DashboardAgent|RuntimeEnvAgent)'; }

node=$(titles | sed -n 's/^--node_id=//p' | head -n 1)
[ -n "$node" ] || exit 0
end=$(($(date +%s) + seconds))
ray drain-node --address "$RAY_ADDRESS" --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message "the pod is being stopped" --deadline-remaining-seconds "$seconds" || exit 0
while busy && [ "$(date +%s)" -lt "$end" ]; do sleep 1; done
exit 0

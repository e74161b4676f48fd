#!/usr/bin/env bash
# Watches for the notice, two minutes ahead, that AWS takes this spot instance back, and drains the node.
#
# Started in the background by ray-cluster.yaml on GPU workers. On an on-demand instance the notice never
# comes. Everything is asked of the instance's own metadata service, at a link-local address.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
metadata=${UDC_RAY_METADATA:-http://169.254.169.254/latest}

notice() {
    local session
    session=$(curl --silent --fail --max-time 2 --request PUT --header 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
        "$metadata/api/token") || return
    curl --silent --fail --max-time 2 --output /dev/null --header "X-aws-ec2-metadata-token: $session" \
        "$metadata/meta-data/spot/instance-action"
}

until notice; do
    sleep "${UDC_RAY_SPOT_SECONDS:-5}"
done
exec "$here/drain-node.sh" 100

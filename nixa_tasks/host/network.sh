# Two lines: the interfaces as JSON, and `CLIENT PORT SERVER PORT` of our own connection.
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/sbin
ip -j -d addr show 2>/dev/null | tr -d '\n' || :
echo
echo "${SSH_CONNECTION-}"

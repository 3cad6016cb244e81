# tcp_check.sh PORT: whether the host accepts a connection at the address that ours came to, tried from
# the host itself, where the controller's own way leads over another computer.
PATH=$PATH:/run/current-system/sw/bin
set -- "$1" ${SSH_CONNECTION-}
exec timeout 10 bash -c 'exec 3<>"/dev/tcp/$1/$2"' sh "${4:-localhost}" "$1"

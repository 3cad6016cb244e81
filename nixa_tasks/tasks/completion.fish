# Completion of tasks, hosts and doit's commands for fish, for `nixa` and for `doit` with nixa's dodo.py.
# nixa tabcompletion --shell fish > ~/.config/fish/completions/nixa.fish
# and the same as doit.fish

function __nixa_tasks
    set -l program (commandline -opc)[1]
    set -l word (commandline -ct)
    if string match -q '*:*' -- $word
        $program list --all --quiet 2>/dev/null | string trim
    else
        $program list 2>/dev/null | string replace -r '\s+' '\t'
        $program list --all --quiet 2>/dev/null | string trim | string match '*:*'
    end
end

function __nixa_is_first
    test (count (commandline -opc)) -eq 1
end

for program in nixa doit
    complete -c $program -f -a '(__nixa_tasks)'
    complete -c $program -n __nixa_is_first -a list -d 'list tasks'
    complete -c $program -n __nixa_is_first -a info -d 'why a task is due'
    complete -c $program -n __nixa_is_first -a forget -d 'make tasks due'
    complete -c $program -n __nixa_is_first -a ignore -d 'leave tasks out until they are forgotten'
    complete -c $program -n __nixa_is_first -a clean -d 'remove what can be fetched again'
    complete -c $program -n __nixa_is_first -a help -d 'help on a command or a task'
    complete -c $program -s a -l always-execute -d 'whatever the stamps say'
    complete -c $program -s n -l process -x -d 'how many at the same time'
    complete -c $program -l on -x -d 'choose hosts: @tag, names, globs, and, or, not, ( )'
    complete -c $program -l json -d 'one JSON document'
    complete -c $program -l live -d 'ask the hosts themselves'
end

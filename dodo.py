from nixa_tasks.dodo import *  # noqa: F403

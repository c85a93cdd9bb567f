"""Pages of runs that follow their logs, on this machine only: ``rlmon serve DIR``.

``places`` finds the runs and tells whether their files changed, ``worker`` audits one in another process, ``desk``
keeps what is known and decides what is looked at again, ``index`` is the page of all runs, ``app`` answers requests
(the only file with Starlette), ``server`` listens (the only one with uvicorn).
"""

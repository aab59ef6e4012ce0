// Package cgroup gives every attempt a control group of its own (cgroups(7)): there its limits of memory, processor time and
// processes hold for all that it starts, the kernel counts whom it killed for memory, and a kill reaches also those that
// left the session.
//
// Version 2 is used where a folder below the runner's own group can be made. A controller that is bound to version 1 on this machine
// is used there. Neither is needed to run a process: only a limit that was asked for and cannot be had is an error.
//
//	<the runner's own group>/verbatim-<runner>/<attempt>     in each hierarchy that is used
//
// Version 2 gives controllers only to groups without processes of their own beside them (the rule of no inner processes). So the
// supervisor, where it is alone in its group, moves to the group verbatim-<runner>/supervisor before it hands controllers on. With
// systemd that needs Delegate=yes. In the topmost group the rule does not hold.
//
// Groups outlive their process where it left somebody behind, and where the supervisor was killed. Sweep removes those that are empty.
package cgroup

-- How tables looked when they were last released. The audit log says what a release changed.
grant select on ops.policy_releases to goldleaves_kernel;

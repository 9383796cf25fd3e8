drop table audit.pending;
drop table audit.personal;
drop table audit.heads;
drop table audit.log;
drop schema audit;

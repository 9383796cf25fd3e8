drop table $table;

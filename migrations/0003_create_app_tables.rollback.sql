drop table app.documents;
drop table app.cases;
drop table app.clients;

create table members (id integer primary key, name text not null, fees integer not null);
create table books (id integer primary key, title text not null, author text not null, copies integer not null);
create table loans (member_id integer, book_id integer, due integer, renewals integer, primary key (member_id, book_id));
create table reservations (member_id integer, book_id integer, primary key (member_id, book_id));

insert into members values
  (11, 'Amira Haddad', 0), (12, 'Bruno Costa', 0), (13, 'Chidi Okafor', 140),
  (14, 'Dana Petrova', 0), (15, 'Elif Kaya', 0), (16, 'Farid Rahimi', 60);

insert into books values
  (201, 'Bread for Beginners', 'Lena Ortiz', 2), (202, 'The Night Ferry', 'Tomas Lund', 1),
  (203, 'A History of Bridges', 'Ruth Abebe', 1), (204, 'Repairing Bicycles', 'Lena Ortiz', 3),
  (205, 'Stars over Larkfield', 'Kaito Mori', 2), (206, 'The Quiet Gardener', 'Ruth Abebe', 1),
  (207, 'Numbers at Play', 'Ines Duarte', 2), (208, 'Songs of the North', 'Tomas Lund', 1);

insert into loans values
  (11, 202, 105, 0), (11, 204, 96, 1), (12, 203, 110, 2), (13, 201, 90, 0),
  (14, 206, 98, 0), (14, 207, 112, 0), (14, 204, 103, 1), (15, 208, 120, 0);

insert into reservations values (12, 202), (15, 206);

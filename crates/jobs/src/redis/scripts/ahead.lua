-- Jobs before this one. ARGV: id.
local job = redis.call('HMGET', Q .. 'job:' .. ARGV[1], 's', 'p', 'n')
if not job[1] then return { 'none' } end
if job[1] ~= '0' then return { 'no' } end
local ahead = redis.call('ZRANK', ready(job[2]), seat(job[3], ARGV[1])) or 0
for class = 0, tonumber(job[2]) - 1 do ahead = ahead + redis.call('ZCARD', ready(int(class))) end
return { 'ok', int(ahead) }

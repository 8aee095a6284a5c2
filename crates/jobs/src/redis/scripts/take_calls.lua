-- Takes ends of jobs that are to be told. ARGV: how many, until when nobody else has them, now.
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', Q .. 'calls', '-inf', ARGV[3], 'LIMIT', 0, ARGV[1])) do
    redis.call('ZADD', Q .. 'calls', ARGV[2], id)
    taken[#taken + 1] = id
    taken[#taken + 1] = int(redis.call('HINCRBY', Q .. 'call_tries', id, 1))
end
return taken
